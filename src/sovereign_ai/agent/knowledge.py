"""What the agent makes of two measurements in a row: names of lost cards, tokens, and what is worth telling.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from sovereign_ai.agent.measuring import Reading
from sovereign_ai.inventory.published import can_be_token, token
from sovereign_ai.spec import Device, Node


class Change(NamedTuple):
    """What becomes an event of the node and a line of the log. `reason` is one word, as events have it."""

    reason: str
    message: str
    warning: bool


def remembered(before: Node | None, reading: Reading) -> Node:
    """The node as measured, its silent cards under the names that they had `before`.

    A card that does not tell its UUID is the one that had its index, unless that one answers elsewhere. Where
    the whole driver is silent, every card that was known is at fault for that.
    """
    known = [device for device in before.devices if device.kind == "gpu"] if before else []
    if reading.trouble and known:
        silent = tuple(msgspec.structs.replace(one, fault=reading.trouble) for one in known)
        return msgspec.structs.replace(reading.node, devices=silent)
    here = {device.id for device in reading.node.devices}
    lost = {one.index: one for one in known if can_be_token(one.id) and one.id not in here}
    devices = tuple(_named(one, lost) for one in reading.node.devices)
    return msgspec.structs.replace(reading.node, devices=devices)


def _named(device: Device, lost: Mapping[int, Device]) -> Device:
    known = lost.get(device.index)
    if device.kind != "gpu" or can_be_token(device.id) or known is None:
        return device
    return msgspec.structs.replace(known, fault=device.fault)


def wanted_tokens(node: Node, known: Iterable[str], *, hand_out: bool = True) -> dict[str, str]:
    """Resource → "1" for a card in health, "0" for one at fault and for all others of `known`, the tokens
    that the node has had: a pod that waits for a card that is gone has to be able to tell why.

    `hand_out=False`: another mechanism hands the cards out, so no token may be free.
    """
    wanted = dict.fromkeys(known, "0")
    for device in node.devices:
        if device.kind != "gpu" or not can_be_token(device.id):
            continue
        if hand_out:
            wanted[token(device.id)] = "0" if device.fault else "1"
        elif token(device.id) in wanted:
            wanted[token(device.id)] = "0"
    return wanted


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Those of `wanted` that the node does not say."""
    return {name: value for name, value in wanted.items() if found.get(name) != value}


def changes(before: Node | None, node: Node, trouble: str = "") -> Iterator[Change]:
    """What happened to the cards since `before`; None: nothing is known, so that what is at fault is news."""
    then = _cards(before) if before else {}
    now = _cards(node)
    for uuid, device in now.items():
        was = then[uuid].fault if uuid in then else ""
        if device.fault and device.fault != was:
            yield Change("GpuFault", f"{uuid} ({device.name}): {device.fault}", warning=True)
        elif was and not device.fault:
            yield Change("GpuRecovered", f"{uuid} ({device.name}) answers again, after: {was}", warning=False)
        elif before is not None and uuid not in then:
            yield Change("GpuFound", f"{uuid} ({device.name})", warning=False)
    for uuid, device in then.items():
        if uuid not in now and can_be_token(uuid):
            yield Change("GpuGone", f"{uuid} ({device.name}) is not there any more", warning=True)
    if trouble and not now:
        yield Change("GpuDriverFault", trouble, warning=True)


def _cards(node: Node) -> dict[str, Device]:
    return {device.id: device for device in node.devices if device.kind == "gpu"}


def lasting(node: Node) -> Node:
    """The node without what changes from one second to the next: free memory, and the PCIe generation, which
    a card at rest lowers."""
    devices = tuple(
        msgspec.structs.replace(
            one,
            memory_free_bytes=0,
            pcie=msgspec.structs.replace(one.pcie, generation=0) if one.pcie else None,
        )
        for one in node.devices
    )
    return msgspec.structs.replace(node, memory_free_bytes=0, devices=devices)
