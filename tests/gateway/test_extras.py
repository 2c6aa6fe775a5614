from __future__ import annotations

import subprocess
import sys

import pytest

from sovereign_ai.config import GatewaySettings, TracingSettings
from sovereign_ai.errors import ConfigError
from sovereign_ai.gateway.extras import check_extras, open_tracing

WANTED = GatewaySettings(
    tracing=TracingSettings(endpoint="http://127.0.0.1:4318", where="factory.yaml:7"),
)


def test_nothing_asked_for_is_nothing_opened() -> None:
    check_extras(GatewaySettings())
    assert open_tracing(GatewaySettings(), print) is None


def test_what_is_installed_is_opened() -> None:
    check_extras(WANTED)
    tracing = open_tracing(WANTED, lambda reason: None)
    assert tracing is not None
    tracing.close()


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sovereign_ai.gateway.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for opening in (False, True):
        with pytest.raises(ConfigError) as caught:
            open_tracing(WANTED, print) if opening else check_extras(WANTED)
        assert caught.value.message == (
            "factory.yaml:7: `gateway.tracing` needs OpenTelemetry, which is not installed"
        )
        assert caught.value.hint.endswith("-m pip install 'sovereign-ai[tracing]'")


def test_the_gateway_does_not_import_what_is_off() -> None:
    code = (
        "import sys, sovereign_ai.gateway.server; print([m for m in sys.modules if 'telemetry.' in m + '.'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "opentelemetry" not in done.stdout
