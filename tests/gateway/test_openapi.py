"""Requests of every kind that the API's own description allows, and of kinds that it forbids: whatever comes
in, the answer is one that is described, and never that the gateway failed.

With fakes behind the gateway this says nothing about what an engine makes of such requests; `judge` takes
any running gateway and any number of cases, for the end-to-end tests.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sovereign_ai.gateway.wire import openapi
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import KEY, running

CASES = int(os.environ.get("SOVEREIGN_API_CASES", "500"))
"""Of all paths together. 10,000 take about two minutes."""
TIMEOUT_S = 30.0
"""A request that takes so long hangs."""

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def gateway_url() -> Iterator[str]:
    """A gateway in a thread, because the requests come from this one."""
    ready: list[str] = []
    done = threading.Event()
    started = threading.Event()

    async def serve() -> None:
        async with running(FakeTriton()) as gateway:
            ready.append(gateway.url)
            started.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait(10)
    yield ready[0]
    done.set()
    thread.join()


def judge(url: str, key: str, models: dict[str, str], path: str, cases: int) -> None:
    """Send `cases` generated requests to `path` and judge every answer. `models`: path → who can answer
    there; a model drawn at random would never get past the first check."""
    schema = schemathesis.openapi.from_dict(openapi.as_tree())
    schema.config.base_url = url
    operation = schema[path]["POST"]
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {key}"
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=max(1, cases // 2),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = models[path]
            response = case.call(session=session, timeout=TIMEOUT_S)
            case.validate_response(response, checks=CHECKS)

        send()


MODELS = {
    post.path: "minilm" if post.path in ("/v1/embeddings", "/v1/rerank") else "smol" for post in openapi.POSTS
}


@pytest.mark.parametrize("path", MODELS)
def test_whatever_comes_in_the_answer_is_as_described(gateway_url: str, path: str) -> None:
    judge(gateway_url, KEY, MODELS, path, CASES // len(MODELS))
