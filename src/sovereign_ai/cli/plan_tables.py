"""A plan as a person reads it: who goes where, what each device holds, how fast it will be, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from sovereign_ai.cli.tables import short_ids
from sovereign_ai.console import Bar, Console, human_bytes
from sovereign_ai.planner.rooms import Room, every_room, sites
from sovereign_ai.spec import Deployment, Inventory, Memory, Plan, Rejected

PARTS = (
    ("W", "blue", "weights"),
    ("K", "green", "KV cache"),
    ("A", "yellow", "activations"),
    ("G", "magenta", "CUDA graphs"),
    ("E", "cyan", "the engine itself"),
    ("O", "red", "in use by others"),
    ("D", "white", "kept by the driver"),
)
"""What fills a device, in this order: letter, color, words."""


def show_plan(console: Console, plan: Plan, inventory: Inventory, current: Plan | None = None) -> None:
    """All of a plan but its tiers. `current` is the plan that ran while the inventory was taken."""
    if plan.deployments:
        rooms = {room.key: room for room in every_room(sites(inventory, plan.tiers, current=current)[0])}
        _show_places(console, plan, rooms)
        _show_engines(console, plan, rooms)
        _show_memory(console, plan, rooms)
        _show_speed(console, plan)
    for missing in plan.unplaced:
        console.say(f"no place: {missing.model}: {missing.reason}", style="red")
    for one in plan.deployments:
        console.note(f"{_name(one)}: {one.reason}")
    for model, form in dict.fromkeys((one.model, one.format) for one in plan.deployments if one.to_make):
        how = f"sovereign models quantize {model} --scheme {form}"
        console.note(f"to make: {model} in {form} does not exist yet: {how}")
    for warning in plan.warnings:
        console.note(f"warning: {warning}")


def _name(one: Deployment) -> str:
    return one.model if one.replica == 0 else f"{one.model}/{one.replica + 1}"


Rooms = dict[tuple[str, str], Room]
"""(node, id) → device, in the order of nodes and tiers"""


def _show_places(console: Console, plan: Plan, rooms: Rooms) -> None:
    rows = [
        [
            _name(one),
            _cards(one, rooms),
            _split(one),
            one.tier,
            one.format + (", to make" if one.to_make else ""),
            f"{one.context:,}",
            _requests(one),
        ]
        for one in plan.deployments
    ]
    console.table("Plan", ["model", "cards", "split", "tier", "weights", "context", "requests"], rows)


def _cards(one: Deployment, rooms: Rooms) -> str:
    """`2× RTX 3080`; `CPU` without a count."""
    counts = Counter(_card(rooms[one.node, name]) for name in one.devices)
    return " + ".join(name if name == "CPU" else f"{count}× {name}" for name, count in counts.items())


def _card(room: Room) -> str:
    """As reasons and options call it: the catalog's name tells an RTX 3060 12GB from one of 8."""
    if room.device.kind == "cpu":
        return "CPU"
    return room.card.name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _split(one: Deployment) -> str:
    layers = f" ({'+'.join(map(str, one.layer_partition))} layers)" if one.layer_partition else ""
    ways = [f"TP={one.tp}"] * (one.tp > 1) + [f"PP={one.pp}{layers}"] * (one.pp > 1)
    return " ".join(ways) or "–"


def _requests(one: Deployment) -> str:
    """How many are computed at once, and how many of them can be as long as the context."""
    if one.task == "embed":
        return str(one.max_num_seqs)
    return f"{one.max_num_seqs} ({one.kv_tokens // one.context} full)"


def _show_engines(console: Console, plan: Plan, rooms: Rooms) -> None:
    short = short_ids([name for _, name in rooms])
    rows = [
        [_name(one), one.node, " ".join(short[name] for name in one.devices), _engine(one), _settings(one)]
        for one in plan.deployments
    ]
    console.table("Engines", ["model", "node", "devices", "engine", "settings"], rows)


def _engine(one: Deployment) -> str:
    inside = "embedding" if one.backend == "embedding" else f"vllm {one.vllm}"
    return f"triton {one.release}, {inside}" if one.release else f"triton, {inside}"


def _settings(one: Deployment) -> str:
    arguments = one.engine_args
    said = []
    if "gpu_memory_utilization" in arguments:
        said.append(f"{100 * arguments['gpu_memory_utilization']:.0f} % of the memory")
    if "max_num_batched_tokens" in arguments:
        said.append(f"steps of {arguments['max_num_batched_tokens']:,} tokens")
    if arguments.get("enforce_eager"):
        said.append("eager")
    return ", ".join(said) or "–"


def _show_memory(console: Console, plan: Plan, rooms: Rooms) -> None:
    """Every device of every tier, the unused ones too."""
    held: dict[tuple[str, str], list[Memory]] = defaultdict(list)
    for one in plan.deployments:
        for name, memory in zip(one.devices, one.memories, strict=True):
            held[one.node, name].append(memory)
    console.bars("Memory", _bars(list(rooms.values()), held), PARTS)


def _bars(rooms: Sequence[Room], held: dict[tuple[str, str], list[Memory]]) -> list[Bar]:
    short = short_ids([room.id for room in rooms if room.device.kind == "gpu"])
    labels = [
        [
            room.node,
            f"#{room.device.index}" if room.device.kind == "gpu" else "",
            _card(room),
            short.get(room.id, ""),
        ]
        for room in rooms
    ]
    widths = [max(map(len, column)) for column in zip(*labels, strict=True)]
    return [
        _bar(" ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)), room, held)
        for words, room in zip(labels, rooms, strict=True)
    ]


def _bar(label: str, room: Room, held: dict[tuple[str, str], list[Memory]]) -> Bar:
    memories = held.get(room.key, [])
    total = room.device.memory_bytes
    amounts = (
        sum(one.weights_bytes for one in memories),
        sum(one.kv_cache_bytes for one in memories),
        sum(one.activation_bytes for one in memories),
        sum(one.graphs_bytes for one in memories),
        sum(one.overhead_bytes for one in memories),
        room.cuda_bytes - room.usable_bytes,
        total - room.cuda_bytes,
    )
    note = f"{human_bytes(sum(amounts))} of {human_bytes(total)}"
    return Bar(
        label,
        tuple(amount / total for amount in amounts),
        note if memories else f"unused, {human_bytes(total)}",
    )


def _show_speed(console: Console, plan: Plan) -> None:
    told = [one for one in plan.deployments if one.speed is not None]
    chats = [one.speed for one in told if one.speed and one.task == "chat"]
    lengths = sorted({length for speed in chats for length in speed.ttft_s})
    if told:
        title = "Speed expected (tokens/s; TTFT: time to the first token of a prompt of so many)"
        columns = [
            "model",
            "alone",
            "in full (streams)",
            "prompt",
            *(f"TTFT {length:,}" for length in lengths),
        ]
        console.table(title, columns, [_speed(one, lengths) for one in told])


def _speed(one: Deployment, lengths: Sequence[int]) -> list[str]:
    speed = one.speed
    assert speed is not None  # noqa: S101  the caller has looked
    if one.task == "embed":
        return [_name(one), "–", "–", f"{speed.prefill:,.0f}", *("–" for _ in lengths)]
    firsts = [f"{speed.ttft_s[length]:.2f} s" if length in speed.ttft_s else "–" for length in lengths]
    full = f"{speed.decode_full:,.0f} ({speed.batch})"
    return [_name(one), f"{speed.decode_one:.1f}", full, f"{speed.prefill:,.0f}", *firsts]


def show_options(console: Console, model: str, options: Sequence[Rejected]) -> None:
    """Every option of a model that lost."""
    rows = [["yes" if one.fits else "no", one.option, one.reason] for one in options]
    console.table(f"Options of {model} that lost", ["fits", "option", "why"], rows)
