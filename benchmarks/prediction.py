"""How wrong the planner's numbers are: predicted against measured, for tables of start-up logs and decode
speeds.

    .venv/bin/python benchmarks/prediction.py                      (the tables beside this file)
    .venv/bin/python benchmarks/prediction.py --memory CSV --decode CSV

Memory: tokens that vLLM's KV cache gets, from the settings alone. No constant is fitted on these rows by
this program; planner/memory.py says of each what it was taken from. A setting that a log does not state is
assumed to be vLLM's default and named; such rows are told apart, because an error there can be the
assumption's. Settings that a log's source states and the table lacks stand in data/log_settings.csv, each
with where it is stated; a setting that is only the default of the program which started vLLM is marked as
assumed. The errors of the table as it stands are printed too.

Decode: each GPU is predicted by constants fitted on all other GPUs (leave one GPU out), on the rows of the
file together with the training rows beside this program. The constants that the catalog ships, fitted on
all training rows, are printed too: for rows of other files they are the ones that count."""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from sovereign_ai.catalog.speed import constants_for
from sovereign_ai.planner import calibration
from sovereign_ai.planner.calibration import Point
from sovereign_ai.planner.evidence import (
    MemoryCase,
    Skipped,
    decode_points,
    label_of,
    memory_cases,
    weighed,
)
from sovereign_ai.planner.memory import GIB

DATA = Path(__file__).with_name("data")
KEYS = ("gpu", "model", "quant", "vllm")
LEAST_POINTS = 12
"""Fewer rows of an engine cannot be left out and fitted."""


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


Row = dict[str, str]


def with_settings(rows: Sequence[Row], found: Sequence[Row]) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows with what was found out about them, and by label what of it is an assumption still."""
    completed: list[Row] = []
    assumed: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        more = [one for one in found if all(one[key] == row[key] for key in KEYS)]
        completed.append(row | {one["setting"]: one["value"] for one in more})
        for one in more:
            if one["stated"] != "y":
                assumed[label_of(row)].append(f"{one['setting']} {one['value']}")
    return completed, assumed


def percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def memory_error(case: MemoryCase) -> float | None:
    if case.refused or not case.kv_tokens:
        return None
    return case.predicted_tokens / case.kv_tokens - 1


def show_memory(rows: Sequence[Row], found: Sequence[Row]) -> None:
    completed, assumed = with_settings(rows, found)
    made, skipped = memory_cases(completed)
    cases = [
        msgspec.structs.replace(case, assumed=(*case.assumed, *assumed.get(case.label, ()))) for case in made
    ]
    print("KV cache, tokens: predicted from the settings against vLLM's own log\n")
    print("| grade | log | predicted | measured | error | not stated, assumed |")
    print("|---|---|---:|---:|---:|---|")
    for case in sorted(cases, key=lambda case: (case.grade, case.label)):
        miss = memory_error(case)
        measured = "refused" if case.refused else f"{case.kv_tokens:,}" if case.kv_tokens else "–"
        predicted = (
            f"{case.predicted_tokens:,}"
            if case.predicted_to_start
            else f"refused ({case.predicted_tokens:,})"
        )
        shown = "–" if miss is None else percent(miss)
        cells = (case.grade, case.label, predicted, measured, shown, ", ".join(case.assumed))
        print(f"| {' | '.join(cells)} |")
    print()
    for grade in sorted({case.grade for case in cases}):
        graded = [case for case in cases if case.grade == grade]
        summary(f"grade {grade}, all settings stated", [case for case in graded if not case.assumed])
        summary(f"grade {grade}, all", graded)
    for grade in sorted({case.grade for case in cases}):
        as_given = [case for case in memory_cases(rows)[0] if case.grade == grade]
        summary(f"grade {grade}, all, by the table alone (without log_settings.csv)", as_given)
    wrong = [case for case in cases if case.refused and case.predicted_to_start]
    print(f"said to fit where the log says refused: {len(wrong)} of {sum(case.refused for case in cases)}")
    show_skipped(skipped)


def summary(name: str, cases: Sequence[MemoryCase]) -> None:
    misses = [abs(miss) for case in cases if (miss := memory_error(case)) is not None]
    if misses:
        middle, worst = 100 * statistics.median(misses), 100 * max(misses)
        print(f"{name}: {len(misses)} logs, median {middle:.1f} %, worst {worst:.1f} %")


def show_skipped(skipped: Sequence[Skipped]) -> None:
    for row in skipped:
        print(f"not predicted: {row.row}: {row.reason}")
    print()


def by_gpu(points: Sequence[Point], predict: Callable[[Point], float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for point in points:
        found[point.name].append(predict(point))
    return found


def show_errors(title: str, errors: dict[str, list[float]]) -> None:
    every = [abs(miss) for misses in errors.values() for miss in misses]
    print(f"{title}\n\n| GPU | rows | mean error | bias | worst |")
    print("|---|---:|---:|---:|---:|")
    for gpu, misses in sorted(errors.items()):
        size = [abs(miss) for miss in misses]
        print(
            f"| {gpu} | {len(misses)} | {100 * statistics.mean(size):.1f} % "
            f"| {percent(statistics.mean(misses))} | {100 * max(size):.1f} % |"
        )
    print(
        f"\n{title}: mean error {100 * statistics.mean(every):.2f} %, {len(every)} rows, {len(errors)} GPUs\n"
    )


def leave_one_out(points: Sequence[Point], training: Sequence[Point]) -> dict[str, list[float]]:
    pool = [*points, *(point for point in training if point not in points)]
    errors: dict[str, list[float]] = {}
    for gpu in sorted({point.name for point in points}):
        constants = calibration.fit("left out", [point for point in pool if point.name != gpu])
        errors[gpu] = [calibration.error(constants, point) for point in points if point.name == gpu]
    return errors


def show_decode(points: Sequence[Point], skipped: Sequence[Skipped], training: Sequence[Point]) -> None:
    print("Decode, tokens a second of one sequence\n")
    for engine in sorted({point.engine for point in points}):
        rows = [point for point in points if point.engine == engine]
        others = [point for point in training if point.engine == engine]
        gpus = {point.name for point in (*rows, *others)}
        if len(rows) + len(others) >= LEAST_POINTS and len(gpus) > 1:
            show_errors(f"{engine}, leaving one GPU out", leave_one_out(rows, others))
        shipped = constants_for(engine)
        errors = by_gpu(rows, lambda point, shipped=shipped: calibration.error(shipped, point))  # type: ignore[misc]
        show_errors(f"{engine}, shipped constants ({shipped.source})", errors)
    show_skipped(skipped)


def show_weighed(rows: Sequence[dict[str, str]]) -> None:
    print("Memory weighed part by part, GiB\n\n| model | what | measured | predicted | error |")
    print("|---|---|---:|---:|---:|")
    for one in map(weighed, rows):
        measured, predicted = one.measured_bytes / GIB, one.predicted_bytes / GIB
        print(f"| {one.model} | {one.what} | {measured:.3f} | {predicted:.3f} | {percent(one.error)} |")
    print()


def show_constants(points: Sequence[Point]) -> None:
    for engine in sorted({point.engine for point in points}):
        rows = [point for point in points if point.engine == engine]
        print(calibration.fit(engine, rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", type=Path, default=DATA / "vllm_log_points.csv")
    parser.add_argument("--decode", type=Path, default=DATA / "decode_points.csv")
    parser.add_argument("--settings", type=Path, default=DATA / "log_settings.csv")
    parser.add_argument("--weighed", type=Path, default=DATA / "h100_memory.csv")
    parser.add_argument("--fit", action="store_true", help="print constants fitted on --decode and stop")
    options = parser.parse_args()
    points, skipped = decode_points(read(options.decode))
    if options.fit:
        show_constants(points)
        return
    show_memory(read(options.memory), read(options.settings))
    show_weighed(read(options.weighed))
    training, _ = decode_points(read(DATA / "decode_points.csv"))
    show_decode(points, skipped, training)


if __name__ == "__main__":
    main()
