"""What differs between two plans, in plain words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.planner.memory import gib
from sovereign_ai.spec import Deployment, Plan

Copy = tuple[str, int]
"""(model, replica)"""

SPEED_CHANGE = 0.02
"""Smaller changes of the predicted speed are not told."""


def differences(old: Plan, new: Plan) -> tuple[str, ...]:
    """A sentence for each difference, empty for plans that deploy the same; moves before settings."""
    before, after = _copies(old), _copies(new)
    kept = _paired(before, after)
    stay = {id(one) for pair in kept for one in pair}
    lines = [f"{_name(one)} stops: it ran on {_place(one)}" for one in before if id(one) not in stay]
    lines += [f"{_name(one)} is new: {one.format} on {_place(one)}" for one in after if id(one) not in stay]
    for a, b in kept:
        lines += _changes(a, b)
    lines += _unplaced(old, new)
    return tuple(lines)


def _copies(plan: Plan) -> list[Deployment]:
    return sorted(plan.deployments, key=lambda one: (one.model, one.replica))


def _paired(before: Sequence[Deployment], after: Sequence[Deployment]) -> list[tuple[Deployment, Deployment]]:
    """Copies of the same model: those that stay on their devices first, the others in order."""
    pairs: list[tuple[Deployment, Deployment]] = []
    for same_place in (True, False):
        for a in before:
            for b in after:
                free = all(a is not x and b is not y for x, y in pairs)
                there = (a.node, set(a.devices)) == (b.node, set(b.devices))
                if free and a.model == b.model and (there or not same_place):
                    pairs.append((a, b))
                    break
    return sorted(pairs, key=lambda pair: (pair[1].model, pair[1].replica))


def _changes(a: Deployment, b: Deployment) -> list[str]:
    name, lines = _name(b), []
    if (a.node, set(a.devices)) != (b.node, set(b.devices)):
        lines.append(f"{name} moves from {_place(a)} to {_place(b)}")
    for what, old, new in (
        ("version", a.version, b.version),
        ("weights", a.format, b.format),
        ("tensor parallelism", a.tp, b.tp),
        ("pipeline stages", a.pp, b.pp),
        ("layers of the stages", a.layer_partition, b.layer_partition),
        ("context", a.context, b.context),
        ("requests at once", a.max_num_seqs, b.max_num_seqs),
        ("Triton release", a.release, b.release),
        ("vLLM", a.vllm, b.vllm),
    ):
        if old != new:
            lines.append(f"{name}: {what} {_value(old)} → {_value(new)}")
    lines += _arguments(name, a, b)
    return lines + _predictions(name, a, b)


def _arguments(name: str, a: Deployment, b: Deployment) -> list[str]:
    told = {"max_model_len", "max_num_seqs", "tensor_parallel_size", "pipeline_parallel_size", "dtype"}
    keys = sorted({*a.engine_args, *b.engine_args} - told)
    return [
        f"{name}: {key} {_value(a.engine_args.get(key))} → {_value(b.engine_args.get(key))}"
        for key in keys
        if a.engine_args.get(key) != b.engine_args.get(key)
    ]


def _predictions(name: str, a: Deployment, b: Deployment) -> list[str]:
    lines = []
    if a.speed and b.speed and b.task == "chat":
        for what, old, new in (
            ("alone", a.speed.decode_one, b.speed.decode_one),
            ("in full", a.speed.decode_full, b.speed.decode_full),
        ):
            if old > 0 and abs(new / old - 1) > SPEED_CHANGE:
                word = "faster" if new > old else "slower"
                share = abs(new / old - 1)
                lines.append(f"{name}: {share:.0%} {word} {what}: {old:.1f} → {new:.1f} tokens/s expected")
    if gib(a.memory.total_bytes) != gib(b.memory.total_bytes):
        lines.append(
            f"{name}: {gib(a.memory.total_bytes)} → {gib(b.memory.total_bytes)} on its fullest device"
        )
    return lines


def _unplaced(old: Plan, new: Plan) -> list[str]:
    before = {one.model for one in old.unplaced}
    return [
        f"{one.model} has no place any more: {one.reason}" for one in new.unplaced if one.model not in before
    ]


def _name(one: Deployment) -> str:
    return one.model if one.replica == 0 else f"{one.model} (copy {one.replica + 1})"


def _place(one: Deployment) -> str:
    return f"{', '.join(device[:12] for device in one.devices)} of {one.node}"


def _value(value: object) -> str:
    if value is None or value in ("", ()):
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
