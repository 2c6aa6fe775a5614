"""Routes for the gateway: model name → the endpoints that serve it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sovereign_ai.config import UpstreamEntry
from sovereign_ai.errors import ConfigError
from sovereign_ai.render.triton import TritonProcess
from sovereign_ai.spec import Deployment, Endpoint, Plan, Route, Routes


def render_routes(
    plan: Plan,
    processes: Sequence[TritonProcess],
    folders: Mapping[str, str],
    urls: Mapping[str, str],
    *,
    created: int,
    continuations: int = 2,
    upstreams: Sequence[UpstreamEntry] = (),
    fallbacks: Mapping[str, Sequence[str]] = {},
) -> Routes:
    """`urls` maps a process's name to its base URL, `created` is a Unix time in seconds (as OpenAI's
    model objects carry it). Copies of a model are endpoints of one route, in order of tier; each is weighed
    by the speed that was predicted for its full batch. `upstreams` are models that others serve, `fallbacks`:
    model → who answers where it cannot. Raises ConfigError where an upstream has the name of a planned
    model."""
    ranks = {tier.name: tier.rank for tier in plan.tiers}
    copies: dict[str, list[Deployment]] = {}
    for deployment in plan.deployments:
        copies.setdefault(deployment.model, []).append(deployment)
    if doubled := [one.model for one in upstreams if one.model in copies]:
        raise ConfigError(
            f"gateway.upstreams: `{doubled[0]}` is planned here too", "give one of the two another name"
        )
    planned = tuple(
        _route(
            sorted(members, key=lambda one: (ranks.get(one.tier, 0), one.replica)),
            processes,
            folders[model],
            urls,
            created=created,
            continuations=continuations,
            fallback=tuple(fallbacks.get(model, ())),
        )
        for model, members in copies.items()
    )
    return Routes(routes=planned + upstream_routes(upstreams, created=created, continuations=continuations))


def upstream_routes(
    upstreams: Sequence[UpstreamEntry], *, created: int, continuations: int
) -> tuple[Route, ...]:
    """Routes to servers that others run. Several upstreams of one model are endpoints of one route."""
    members: dict[str, list[UpstreamEntry]] = {}
    for one in upstreams:
        members.setdefault(one.model, []).append(one)
    return tuple(
        Route(
            model=model,
            task=those[0].task,
            context=max(one.context for one in those),
            folder="",
            endpoints=tuple(_upstream_endpoint(one) for one in those),
            created=created,
            continuations=continuations,
        )
        for model, those in members.items()
    )


def _upstream_endpoint(one: UpstreamEntry) -> Endpoint:
    return Endpoint(
        # what people see in status and metrics: the address says best which it is
        name=one.url.partition("://")[2].rstrip("/").removesuffix("/v1"),
        url=one.url,
        engine=one.engine,
        model=one.upstream_model or one.model,
        weight=one.weight,
        context=one.context,
        max_num_seqs=one.concurrency,
        key_file=str(one.key_file or ""),
    )


def _route(
    members: Sequence[Deployment],
    processes: Sequence[TritonProcess],
    folder: str,
    urls: Mapping[str, str],
    *,
    created: int,
    continuations: int,
    fallback: tuple[str, ...],
) -> Route:
    first = members[0]
    return Route(
        model=first.model,
        task=first.task,
        context=max(one.context for one in members),
        folder=folder,
        endpoints=tuple(_endpoint(one, processes, urls) for one in members),
        created=created,
        continuations=continuations,
        fallback=fallback,
    )


def _endpoint(one: Deployment, processes: Sequence[TritonProcess], urls: Mapping[str, str]) -> Endpoint:
    process = next(p for p in processes if (p.node, p.devices) == (one.node, one.devices))
    speed = round(one.speed.decode_full, 3) if one.speed and one.speed.decode_full > 0.001 else 1.0
    return Endpoint(
        name=process.name,
        url=urls[process.name],
        engine="triton",
        model=one.model,
        weight=speed,
        context=one.context,
        max_num_seqs=one.max_num_seqs,
    )
