"""Routes for the gateway: model name → the endpoints that serve it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sovereign_ai.render.triton import TritonProcess
from sovereign_ai.spec import Endpoint, Plan, Route, Routes


def render_routes(
    plan: Plan,
    processes: Sequence[TritonProcess],
    folders: Mapping[str, str],
    urls: Mapping[str, str],
    *,
    created: int,
) -> Routes:
    """`urls` maps a process's name to its base URL, `created` is a Unix time in seconds (as OpenAI's
    model objects carry it)."""

    def endpoints(model: str) -> tuple[Endpoint, ...]:
        return tuple(
            Endpoint(name=process.name, url=urls[process.name], engine="triton", model=model)
            for process in processes
            if model in process.models
        )

    return Routes(
        routes=tuple(
            Route(
                model=deployment.model,
                task=deployment.task,
                context=deployment.context,
                folder=folders[deployment.model],
                endpoints=endpoints(deployment.model),
                created=created,
            )
            for deployment in plan.deployments
            # Copies of a model are endpoints of one route.
            if deployment.replica == 0
        )
    )
