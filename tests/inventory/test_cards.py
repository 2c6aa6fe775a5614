from __future__ import annotations

import msgspec

from sovereign_ai.inventory import catalog_bandwidths
from sovereign_ai.inventory.cards import cards, described, matched
from tests.inventory.fakes import cpu, gpu, inventory


def test_only_healthy_gpus() -> None:
    there = inventory(gpu(0, "A", 8192), gpu(1, "A", 8192, fault="lost"), cpu())
    (card,) = cards(there, {})
    assert (card.device.id, card.node, card.gib, card.capability) == ("GPU-00000000", "box", 8, (8, 6))
    assert card.speed is None


def test_a_card_that_tells_nothing() -> None:
    silent = msgspec.structs.replace(gpu(0, "A", 8192), compute_capability=None)
    found = cards(inventory(silent), {})
    assert found[0].capability == (0,)
    assert described(found) == "A, 8 GiB and unknown bandwidth, compute capability unknown"


def test_twelve_is_above_nine() -> None:
    new, old = gpu(0, "A", 8192, capability="12.0"), gpu(1, "A", 8192, capability="9.0")
    first, second = cards(inventory(new, old), {})
    assert first.capability > second.capability


def test_unknown_bandwidths_match_by_name_only() -> None:
    found = cards(inventory(gpu(0, "A", 8192), gpu(1, "B", 8192), gpu(2, "A", 8192)), {})
    assert [[card.device.index for card in group] for group in matched(found)] == [[0, 2], [1]]


def test_the_catalog_knows_what_the_driver_does_not_tell() -> None:
    there = inventory(
        gpu(0, "NVIDIA GeForce RTX 3080", 10240),
        gpu(1, "NVIDIA GeForce RTX 3070", 8192, gb_s=440),
        gpu(2, "Nobody's card", 8192),
        cpu(),
    )
    assert catalog_bandwidths(there) == {"GPU-00000000": 760.3e9}
