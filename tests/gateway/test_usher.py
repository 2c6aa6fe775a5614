from __future__ import annotations

import msgspec
import pytest

from sovereign_ai.errors import Forbidden
from sovereign_ai.gateway.admission import digest
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.proxy import Served
from sovereign_ai.gateway.usher import PermittedModels
from sovereign_ai.gateway.visit import CURRENT, Visit
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import KEY, key_table, prompt_builder, routes_to


def test_a_request_finds_the_models_that_its_key_may_ask() -> None:
    served = {route.model: Served(route, prompt_builder()) for route in routes_to(FakeTriton()).routes}
    models = PermittedModels(served)
    assert (list(models), len(models)) == (["smol", "minilm"], 2)
    assert models["smol"] is served["smol"], "outside of requests there is no key"
    key = msgspec.structs.replace(key_table().records[digest(KEY)], models=("minilm",))
    token = CURRENT.set(Visit(RequestRecord(method="POST", path="/", started=0.0), key, 60.0))
    try:
        assert models.get("minilm") is served["minilm"]
        assert models.get("nope") is None
        with pytest.raises(Forbidden):
            models.get("smol")
    finally:
        CURRENT.reset(token)
