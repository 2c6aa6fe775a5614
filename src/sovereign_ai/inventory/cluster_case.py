"""What the checks of a cluster judge by: its facts, and what is to run there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

from sovereign_ai.config import ClusterSettings, Pinning
from sovereign_ai.inventory.cluster_facts import Cluster, ClusterNode
from sovereign_ai.spec import Noun

DEVICE_PLUGIN = "nvidia.com/gpu"


class ClusterDemand(Noun, frozen=True, kw_only=True):
    """What is to run in the cluster. `token_domain` is what names of tokens begin with; `cards` and
    `limits_bytes` are the plan's, by node: UUIDs, and the sum of the pods' memory limits; empty without a
    plan."""

    settings: ClusterSettings
    pinning: Pinning
    runtime_class: str
    token_domain: str
    today: date
    images: tuple[str, ...] = ()
    cards: Mapping[str, tuple[str, ...]] = {}
    limits_bytes: Mapping[str, int] = {}


class ClusterCase(NamedTuple):
    cluster: Cluster
    demand: ClusterDemand

    @property
    def ours(self) -> list[ClusterNode]:
        """Nodes that the plan uses; without a plan those with cards; where no node shows any, all."""
        nodes = list(self.cluster.nodes or ())
        planned = [one for one in nodes if one.name in self.demand.cards]
        return planned or [one for one in nodes if self.has_cards(one)] or nodes

    def has_cards(self, node: ClusterNode) -> bool:
        return bool(
            node.cards
            or self.tokens(node)
            or node.extended.get(DEVICE_PLUGIN)
            or any(one.node == node.name and one.cards for one in self.cluster.slices or ())
        )

    def tokens(self, node: ClusterNode) -> dict[str, int]:
        """UUID → how many of its token can be allocated."""
        beginning = f"{self.demand.token_domain}/"
        found = node.extended.items()
        return {name.removeprefix(beginning): n for name, n in found if name.startswith(beginning)}

    def unknown(self, *kinds: str) -> str:
        """Why one of these kinds of objects is not known; empty where all are."""
        if self.cluster.problem:
            return "the API server does not answer"
        return next((f"{kind}: {why}" for kind in kinds if (why := self.cluster.unreadable.get(kind))), "")
