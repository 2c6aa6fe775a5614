"""`sovereign calibrate`: what one's own cards do replaces what the catalog knows of their engine."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.catalog.speed import Constants, constants_for
from sovereign_ai.cli import conversation
from sovereign_ai.cli.measured import FILE, Calibration, Entry, load, save
from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.deploy import local
from sovereign_ai.errors import NotRunning, UsageError
from sovereign_ai.inventory import take_inventory
from sovereign_ai.planner import calibration, performance
from sovereign_ai.planner.calibration import Point, PromptPoint
from sovereign_ai.planner.cpu import CPU_VLLM, cpu_rank
from sovereign_ai.planner.evidence import Skipped, decode_points, prompt_points
from sovereign_ai.planner.performance import Card, Stage
from sovereign_ai.planner.rooms import cpu_card
from sovereign_ai.planner.wish import wish_for
from sovereign_ai.spec import Deployment, Model, Plan
from sovereign_ai.store import Store

ENGINES = ("vllm", "torch")
"""Engines whose speeds tell of ours: vLLM itself, and PyTorch, whose kernels it runs."""

ANSWER_TOKENS = 48
"""Tokens of each measured answer: two seconds on a slow CPU."""

STREAMS = 8
"""Streams that are measured together, for what a sequence costs beside its bytes."""

LONG_PROMPT_WORDS = 600
"""Words of the prompt that prefill is measured with: some 800 tokens, one step of the engine."""

QUESTIONS = ("the sea", "a forest", "the moon", "a river", "winter", "a train", "a clock", "the wind")


def calibrate(console: Console, paths: Paths, table: Path | None) -> None:
    """Measure the running stack, or take the speeds of a table; keep the result for every later plan."""
    entries = from_table(table) if table else from_stack(console, paths)
    kept = [one for one in load(paths.home).entries if one.card not in {entry.card for entry in entries}]
    save(paths.home, Calibration(entries=(*kept, *entries)))
    if console.json:
        console.data(entries)
        return
    for entry in entries:
        before = constants_for(entry.engine, VllmVersion.parse(entry.vllm))
        rows = [[key, f"{old:.3g}", f"{new:.3g}"] for key, old, new in _compared(before, entry.constants)]
        console.table(
            f"{entry.card} ({entry.engine}, {entry.points} speeds)", ["constant", "was", "is"], rows
        )
    console.note(f"saved to {paths.home / FILE}: every plan for these cards uses it from now on")


def _compared(old: Constants, new: Constants) -> list[tuple[str, float, float]]:
    names = ("layer_s", "step_s", "sequence_s", "compute")
    plain = [(name, getattr(old, name), getattr(new, name)) for name in names]
    read = [(f"read {key}", value, new.read[key]) for key, value in old.read.items()]
    return [one for one in (*plain, *read) if one[1] or one[2]]


def from_table(path: Path) -> list[Entry]:
    """Entries from a table of decode speeds in the format of benchmarks/data/decode_points.csv.

    Raises UsageError where nothing in it can be used, naming the reasons.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        points, skipped = decode_points(rows)
        prompts = [point for point in prompt_points(rows) if point.engine in ENGINES]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a table of speeds: {error!r}") from error
    skipped += [
        Skipped(row=point.name, reason=f"`{point.engine}` is not an engine that serves here")
        for point in points
        if point.engine not in ENGINES
    ]
    points = [point for point in points if point.engine in ENGINES]
    if not points:
        reasons = "; ".join(dict.fromkeys(one.reason for one in skipped)) or "the table is empty"
        raise UsageError(f"{path}: no speed in it can be used: {reasons}")
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.name, []).append(point)
    return [
        _entry(card, group, [point for point in prompts if point.name == card])
        for card, group in sorted(groups.items())
    ]


def _entry(card: str, points: Sequence[Point], prompts: Sequence[PromptPoint]) -> Entry:
    base = constants_for("vllm")
    made = int(time.time())
    source = f"{len(points)} measured speeds of {card}"
    return Entry(
        card=card,
        engine="vllm",
        vllm=base.since or "0.5.5",
        constants=calibration.with_prompts(calibration.adjust(base, points, source=source), prompts),
        tokens_per_s=statistics.median(point.tokens_per_s for point in points),
        points=len(points),
        made=made,
    )


def from_stack(console: Console, paths: Paths) -> list[Entry]:
    """Measure the first chat model that runs on this machine's CPU.

    Raises NotRunning where nothing runs, UsageError where what runs is not on the CPU: the engine for GPUs
    is not there yet.
    """
    state = local.running(paths)
    if state is None:
        raise NotRunning("nothing is running here", "start the stack: sovereign up")
    plan = msgspec.json.decode((paths.run / "plan.json").read_bytes(), type=Plan)
    chats = [one for one in plan.deployments if one.task == "chat" and one.devices == ("cpu",)]
    if not chats:
        raise UsageError("no chat model runs on the CPU here", "give a table of speeds: --from FILE")
    model = _stored_model(Store(paths.models, paths.cache), chats[0])
    card = cpu_card(take_inventory(cpu_only=True).devices[0])
    with conversation.passing_key(paths.ledger, "calibrate") as key:
        probe = _Probe(console, state.gateway_url, key, chats[0].model)
        return [_from_probe(probe, model, card)]


def _stored_model(store: Store, one: Deployment) -> Model:
    found = [
        manifest.model
        for manifest in store.list()
        if (manifest.name, manifest.version) == (one.model, one.version)
    ]
    if not found:
        raise UsageError(
            f"the store has no `{one.model}` {one.version} any more", "start the stack anew: sovereign up"
        )
    return found[0]


class _Probe:
    """Asks the gateway what decides the constants: one stream, several, and a long prompt."""

    def __init__(self, console: Console, url: str, key: str, model: str) -> None:
        self._console, self._url, self._key, self._model = console, url, key, model

    def _ask(self, question: str, tokens: int) -> conversation.Answer:
        options = {"temperature": 0, "max_tokens": tokens}
        messages = [{"role": "user", "content": question}]
        return conversation.ask(self._url, self._key, self._model, messages, options)

    def measure(self, rounds: int = 3) -> tuple[float, float, float, int]:
        """Medians: tokens a second of one stream; of one of STREAMS streams; seconds to the first token of a
        long prompt; and the tokens of that prompt."""
        alone, together, first, length = [], [], [], 1
        with self._console.progress("measuring", total=3 * rounds, unit="steps") as progress:
            for number in range(rounds):
                alone.append(self._ask(_story("alone", number), ANSWER_TOKENS).tokens_per_second)
                progress.update(3 * number + 1)
                with ThreadPoolExecutor(STREAMS) as pool:
                    stories = [_story(what, number) for what in QUESTIONS]
                    answers = list(pool.map(lambda story: self._ask(story, ANSWER_TOKENS), stories))
                together.append(statistics.median(answer.tokens_per_second for answer in answers))
                progress.update(3 * number + 2)
                # A prompt that was seen before comes out of the prefix cache: every round has its own.
                prompt = f"{number} {time.time_ns()} " + "word " * LONG_PROMPT_WORDS
                started = time.monotonic()
                # Its one token may be a blank, which no text tells of: the whole answer is timed.
                length = self._ask(prompt, 1).prompt_tokens
                first.append(time.monotonic() - started)
                progress.update(3 * number + 3)
        return statistics.median(alone), statistics.median(together), statistics.median(first), length


def _story(about: str, number: int) -> str:
    return f"Write a long story about {about}, version {number}."


def _from_probe(probe: _Probe, model: Model, card: Card) -> Entry:
    alone, together, first, length = probe.measure()
    if min(alone, together) <= 0:
        raise UsageError(
            f"`{model.name}` answers with one token: nothing can be measured", "serve another model"
        )
    rank = cpu_rank(wish_for(model))
    context = ANSWER_TOKENS
    point = Point(
        name=card.name,
        engine="vllm-cpu",
        card=card,
        rank=rank,
        context=context,
        tokens_per_s=alone,
    )
    source = "measured on this machine through its own gateway"
    constants = calibration.adjust(constants_for("vllm-cpu"), [point], source=source)
    stage = Stage(rank=rank, card=card)
    constants = calibration.with_batch(constants, stage, STREAMS, context, together)
    constants = calibration.with_prompt(constants, stage, length, first)
    return Entry(
        card=card.name,
        engine="vllm-cpu",
        vllm=str(CPU_VLLM),
        constants=constants,
        tokens_per_s=performance.decode_one(constants, [stage], context),
        points=3,
        made=int(time.time()),
    )
