"""Why a plan is as it is, and why another is not: in words, with the numbers behind them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sovereign_ai.errors import PlanError
from sovereign_ai.planner.candidates import Tried, fidelity, pace
from sovereign_ai.planner.cpu import why_not_bfloat16
from sovereign_ai.planner.memory import gib, gib2
from sovereign_ai.planner.sizing import Fit, Misfit
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Deployment, Format, Rejected

MOST_REJECTED = 12
"""Rejected options of one model that a plan keeps; `--explain` works all of them out again."""

NAMES: dict[Format, str] = {
    "float32": "FP32",
    "bfloat16": "BF16",
    "float16": "FP16",
    "fp8": "FP8",
    "int8": "INT8",
    "w4a16": "4-bit (W4A16)",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bnb4": "bitsandbytes 4-bit",
}


def option_name(tried: Tried) -> str:
    return f"{NAMES[tried.format]} on {tried.layout.label}"


def why(wish: Wish, fit: Fit, *, shared: bool) -> str:
    """One sentence for a deployment."""
    if fit.layout.rooms[0].device.kind == "cpu":
        return _why_cpu(wish, fit)
    beside = ", shares the card" if shared else ""
    if wish.model.task == "embed":
        return f"{NAMES[fit.format]} on {fit.layout.cards}{beside}"
    alone, full = fit.speed.decode_one, fit.speed.decode_full
    speed = f"{alone:,.0f} tokens/s alone, {full:,.0f} with {fit.speed.batch} streams"
    return f"{NAMES[fit.format]} on {fit.layout.cards}{beside}: {speed}, KV cache of {fit.kv_tokens:,} tokens"


def _why_cpu(wish: Wish, fit: Fit) -> str:
    if wish.model.task == "embed":
        return "no GPU: the CPU serves, in float32"
    cache = f"the KV cache of {gib(fit.kv_bytes)} holds {fit.kv_tokens:,} tokens"
    return f"no GPU: the CPU serves, in float32; {cache}"


def because(wish: Wish, fit: Fit, tried: Sequence[Tried]) -> str:
    """Why the weights are quantized: what hindered the next more faithful format on the same cards. Empty
    where they are as given."""
    mine = fidelity(wish, fit.format)
    alike = [
        one
        for one in tried
        if isinstance(one.result, Misfit)
        and fidelity(wish, one.format) < mine
        and (one.layout.cards, one.layout.tp, one.layout.pp)
        == (fit.layout.cards, fit.layout.tp, fit.layout.pp)
    ]
    if not alike:
        return ""
    nearest = max(alike, key=lambda one: fidelity(wish, one.format))
    assert isinstance(nearest.result, Misfit)  # noqa: S101  only misfits are looked at
    return f"; {NAMES[nearest.format]} does not fit: {nearest.result.reason}"


class Taken(NamedTuple):
    """A deployment as options are compared with it."""

    format: Format
    keys: frozenset[tuple[str, str]]
    tp: int
    pp: int
    cards: int
    alone: float
    full: float

    @property
    def pace(self) -> float:
        return math.sqrt(self.alone * self.full)


def taken(one: Deployment) -> Taken:
    speed = one.speed
    return Taken(
        format=one.format,
        keys=frozenset((one.node, device) for device in one.devices),
        tp=one.tp,
        pp=one.pp,
        cards=len(one.devices),
        alone=speed.decode_one if speed else 0.0,
        full=speed.decode_full if speed else 0.0,
    )


def explain(wish: Wish, tried: Iterable[Tried], mine: Sequence[Taken]) -> tuple[Rejected, ...]:
    """Every option that was not taken, with the reason: what does not fit first, then what lost."""
    lost: dict[tuple[str, str], Rejected] = {}
    for one in tried:
        if not any(_same(one, deployed) for deployed in mine):
            entry = _rejected(wish, one, mine)
            lost.setdefault((entry.option, entry.reason), entry)
    return tuple(sorted(lost.values(), key=lambda entry: entry.fits))


def _same(tried: Tried, deployed: Taken) -> bool:
    """The same format and split on the same kind and number of cards: which of them is all one."""
    layout = tried.layout
    keys = {room.key for room in layout.rooms}
    alike = keys == deployed.keys or (
        len(keys) == deployed.cards
        and isinstance(tried.result, Fit)
        and tried.result.speed.decode_one == deployed.alone
    )
    return alike and (tried.format, layout.tp, layout.pp) == (deployed.format, deployed.tp, deployed.pp)


def _rejected(wish: Wish, tried: Tried, mine: Sequence[Taken]) -> Rejected:
    if isinstance(tried.result, Misfit):
        return Rejected(model=wish.name, option=option_name(tried), reason=tried.result.reason)
    reason = _lost(wish, tried.result, mine)
    return Rejected(model=wish.name, option=option_name(tried), reason=reason, fits=True)


def _lost(wish: Wish, found: Fit, mine: Sequence[Taken]) -> str:
    speed = found.speed
    says = f"fits, {speed.decode_one:.1f} tokens/s alone, {speed.decode_full:,.0f} in full"
    if not mine:
        return f"{says}; its devices serve others"
    best = mine[0]
    chosen = f"chosen: {NAMES[best.format]}, {best.alone:.1f} and {best.full:,.0f}"
    if fidelity(wish, found.format) > fidelity(wish, best.format):
        return f"{says}, but quantized further ({chosen})"
    if found.layout.mixed:
        return f"{says}, but mixes kinds of cards ({chosen})"
    if pace(found) <= best.pace:
        return f"{says}: slower ({chosen})"
    if len(found.layout.rooms) > best.cards:
        return f"{says}, but on more cards ({chosen})"
    return f"{says}; its devices serve others better ({chosen})"


def rejected(
    wishes: Sequence[Wish], tried: Sequence[Sequence[Tried]], deployments: Sequence[Deployment]
) -> tuple[Rejected, ...]:
    """For the plan: each wish's plain options (cards of one tier) that do not fit, and the best that lost."""
    found: list[Rejected] = []
    for wish, looked_at in zip(wishes, tried, strict=True):
        mine = [taken(one) for one in deployments if one.model == wish.name]
        plain = [one for one in looked_at if len({room.tier.name for room in one.layout.rooms}) == 1]
        misfits = explain(wish, (one for one in plain if isinstance(one.result, Misfit)), mine)
        fits = [one for one in looked_at if isinstance(one.result, Fit)]
        best = sorted(fits, key=lambda one: -pace(one.result))[: MOST_REJECTED // 2]  # type: ignore[arg-type]
        losers = explain(wish, best, mine)
        found += (*misfits[: MOST_REJECTED - len(losers)], *losers)
        found += _bfloat16_on_cpu(wish, looked_at)
    return tuple(found)


def _bfloat16_on_cpu(wish: Wish, tried: Sequence[Tried]) -> list[Rejected]:
    rooms = [one.layout.rooms[0] for one in tried if one.layout.rooms[0].device.kind == "cpu"]
    if not rooms or wish.model.task != "chat":
        return []
    return [Rejected(model=wish.name, option="bfloat16 on the CPU", reason=why_not_bfloat16(rooms[0]))]


def nothing_fits(cases: Sequence[tuple[Wish, Sequence[Tried]]]) -> PlanError:
    """What is least missing for each wish that fits nowhere, and three ways out of the first."""
    messages = [_missing(wish, tried) for wish, tried in cases]
    return PlanError("\n".join(messages), _ways_out(*cases[0]))


def _closest(tried: Sequence[Tried]) -> Tried | None:
    """The fastest of those that are only too slow, else the option that lacks least; one that fails for
    another reason comes last."""
    misfits = [one for one in tried if isinstance(one.result, Misfit)]
    return min(misfits, key=lambda one: _lack(one.result), default=None)  # type: ignore[arg-type]


def _lack(misfit: Misfit) -> float:
    if misfit.too_slow is not None:
        return -misfit.too_slow
    return float("inf") if misfit.missing_bytes is None else float(misfit.missing_bytes)


def _missing(wish: Wish, tried: Sequence[Tried]) -> str:
    head = f"{wish.at}no place for `{wish.name}` with a context of {wish.least_context} tokens"
    closest = _closest(tried)
    if closest is None:
        if wish.devices:
            return f"{head}: one of its `devices` is at fault"
        where = f"tier `{wish.tier}` has" if wish.tier else "there is"
        return f"{head}: {where} no device for it"
    assert isinstance(closest.result, Misfit)  # noqa: S101  _closest looks at misfits only
    lack = closest.result.missing_bytes
    short = f" ({gib2(lack)} more on the tightest device would do)" if lack else ""
    return f"{head}: the closest is {option_name(closest)}: {closest.result.reason}{short}"


def _ways_out(wish: Wish, tried: Sequence[Tried]) -> str:
    closest = _closest(tried)
    ways = []
    misfit = closest.result if closest and isinstance(closest.result, Misfit) else None
    if misfit is not None and misfit.too_slow is not None:
        ways.append(f"ask for at most {misfit.too_slow:.0f} tokens/s")
    helps = misfit is None or misfit.context_helps
    if helps and wish.least_context > 2048 and wish.model.task == "chat":
        ways.append(f"ask for a smaller context than {wish.least_context}")
    if wish.formats or wish.tier or wish.devices:
        ways.append("drop its `quantization`, `tier` or `devices`, which leave out what might fit")
    if wish.concurrency > 1:
        ways.append(f"ask for fewer than {wish.concurrency} requests at once")
    lack = misfit.missing_bytes if misfit else None
    ways.append(f"add memory: {gib2(lack)} a device" if lack else "add a card that can")
    ways.append("serve a smaller model, or one that is quantized further")
    ways.append("see all options: sovereign plan --explain " + wish.name)
    return "; or ".join(ways[:3])
