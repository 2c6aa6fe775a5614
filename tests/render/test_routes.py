from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sovereign_ai.config import UpstreamEntry
from sovereign_ai.errors import ConfigError
from sovereign_ai.render import render_routes, triton_processes
from sovereign_ai.spec import Endpoint, Route, Routes
from tests.render.test_triton import FOLDERS, deployment, plan

URLS = {"triton-cpu": "http://127.0.0.1:4001", "triton-gpu-1": "http://127.0.0.1:4003"}


def test_a_model_leads_to_the_process_that_serves_it() -> None:
    planned = plan(deployment("smol", "cpu"), deployment("minilm", "cpu", task="embed"))
    routes = render_routes(planned, triton_processes(planned, FOLDERS), FOLDERS, URLS, created=17)
    assert routes == Routes(
        routes=(
            Route(
                model="smol",
                task="chat",
                context=4096,
                folder="/models/smol/1",
                endpoints=(
                    Endpoint(
                        name="triton-cpu",
                        url="http://127.0.0.1:4001",
                        engine="triton",
                        model="smol",
                        context=4096,
                        max_num_seqs=8,
                    ),
                ),
                created=17,
            ),
            Route(
                model="minilm",
                task="embed",
                context=4096,
                folder="/models/minilm/1",
                endpoints=(
                    Endpoint(
                        name="triton-cpu",
                        url="http://127.0.0.1:4001",
                        engine="triton",
                        model="minilm",
                        context=4096,
                        max_num_seqs=8,
                    ),
                ),
                created=17,
            ),
        )
    )


def test_models_that_others_serve() -> None:
    planned = plan(deployment("smol", "cpu"))
    upstreams = (
        UpstreamEntry(
            model="far", url="http://10.0.0.5:8000/v1/", engine="vllm", key_file=Path("/k"), weight=2
        ),
        UpstreamEntry(model="embed", url="http://10.0.0.6", task="embed", upstream_model="org/E"),
        UpstreamEntry(model="far", url="http://10.0.0.7/v1", context=64, concurrency=3),
    )
    processes = triton_processes(planned, FOLDERS)
    routes = render_routes(planned, processes, FOLDERS, URLS, created=17, upstreams=upstreams)
    smol, far, embed = routes.routes
    assert [smol.passed_on, far.passed_on, embed.passed_on] == [False, True, True]
    first = Endpoint(
        name="10.0.0.5:8000",
        url="http://10.0.0.5:8000/v1/",
        engine="vllm",
        model="far",
        weight=2,
        key_file="/k",
    )
    second = Endpoint(
        name="10.0.0.7", url="http://10.0.0.7/v1", engine="openai", model="far", context=64, max_num_seqs=3
    )
    assert far == Route(
        model="far", task="chat", context=64, folder="", endpoints=(first, second), created=17
    )
    assert (embed.task, embed.endpoints[0].model) == ("embed", "org/E")
    with pytest.raises(ConfigError, match="`smol` is planned here too"):
        clash = UpstreamEntry(model="smol", url="http://10.0.0.5")
        render_routes(planned, processes, FOLDERS, URLS, created=17, upstreams=(clash,))


def test_a_process_serves_its_own_models_only() -> None:
    planned = plan(deployment("smol", "cpu"), deployment("nemo", "GPU-gpu-1"))
    routes = render_routes(planned, triton_processes(planned, FOLDERS), FOLDERS, URLS, created=0)
    assert [[endpoint.name for endpoint in route.endpoints] for route in routes.routes] == [
        ["triton-cpu"],
        ["triton-gpu-1"],
    ]


def test_nothing_planned_is_no_route() -> None:
    assert render_routes(plan(), (), {}, {}, created=0) == Routes(routes=())


def test_copies_of_a_model_are_endpoints_of_one_route() -> None:
    copies = [
        msgspec.structs.replace(deployment("nemo", f"GPU-gpu-{at}"), replica=at - 1) for at in (1, 2, 3)
    ]
    planned = plan(*copies, deployment("minilm", "GPU-gpu-2", task="embed"))
    urls = {f"triton-gpu-{at}": f"http://127.0.0.1:{4000 + at}" for at in (1, 2, 3)}
    nemo, minilm = render_routes(planned, triton_processes(planned, FOLDERS), FOLDERS, urls, created=0).routes
    assert [(endpoint.name, endpoint.model) for endpoint in nemo.endpoints] == [
        ("triton-gpu-1", "nemo"),
        ("triton-gpu-2", "nemo"),
        ("triton-gpu-3", "nemo"),
    ]
    assert [endpoint.url for endpoint in minilm.endpoints] == ["http://127.0.0.1:4002"]


def test_a_route_knows_who_answers_in_its_place() -> None:
    planned = plan(deployment("smol", "cpu"), deployment("nemo", "GPU-gpu-1"))
    routes = render_routes(
        planned,
        triton_processes(planned, FOLDERS),
        FOLDERS,
        URLS,
        created=0,
        fallbacks={"nemo": ("smol",), "smol": ()},
    )
    assert {route.model: route.fallback for route in routes.routes} == {"smol": (), "nemo": ("smol",)}
