"""`sovereign agent`: what one node of a cluster runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sovereign_ai.cli.clusters import ContextName, KubeconfigFile
from sovereign_ai.config import environment
from sovereign_ai.errors import UsageError
from sovereign_ai.telemetry import configure_logging

if TYPE_CHECKING:
    from sovereign_ai.agent.serving import AgentSettings

NODE_NAME = "NODE_NAME"
"""Of the environment: where a pod's manifest can put the name of its node."""
INTERVAL_S = (0.2, 120.0)
"""Seconds. Measuring takes a part of one; readers take an agent for stale after five minutes."""


def attend(
    *,
    node: str | None = None,
    interval: float = 15.0,
    once: Annotated[bool, Parameter(negative="")] = False,
    tokens: bool = True,
    host: str = "0.0.0.0",  # noqa: S104  # asked by Prometheus and the kubelet, from outside the pod
    port: int = 9400,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Tell a Kubernetes cluster what its node has, for as long as it runs: one on each node.

    It writes the inventory and the tokens of the cards into the node's object, and serves /metrics and
    /healthz. Without a kubeconfig it uses the pod's service account.

    Parameters
    ----------
    node
        The node's name in the cluster (default: NODE_NAME of the environment).
    interval
        Seconds from one measurement to the next.
    once
        Measure and write once; exits with 69 where the cluster could not be told.
    tokens
        Keep a token for each card; without, all are 0, for a cluster that hands its cards out otherwise.
    host
        Address of the pages.
    port
        Port of the pages; 0: none.
    json
        Log lines as JSON.
    """
    from sovereign_ai.agent.serving import AgentSettings, serve

    name = environment().get(NODE_NAME, "") if node is None else node
    settings = AgentSettings(name, interval, host, port, once, tokens, kubeconfig, context)
    _check(settings)
    configure_logging("info", sys.stderr, json_lines=json)
    serve(settings)


def _check(settings: AgentSettings) -> None:
    least, most = INTERVAL_S
    if not settings.node.strip():
        raise UsageError("--node needs the node's name", f"or {NODE_NAME}: in a pod spec.nodeName")
    if not least <= settings.interval_s <= most:
        raise UsageError(f"--interval {settings.interval_s:g} is not between {least:g} and {most:g} seconds")
    if not 0 <= settings.port < 65536:
        raise UsageError(f"--port {settings.port} is not between 0 and 65535")
