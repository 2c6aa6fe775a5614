"""What the gateway does only where an extra of the package is installed, and factory.yaml asks for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from sovereign_ai.config import GatewaySettings, TracingSettings
from sovereign_ai.errors import ConfigError

if TYPE_CHECKING:
    from sovereign_ai.gateway.tracing import Tracing


def open_tracing(settings: GatewaySettings, tell: Callable[[str], object]) -> Tracing | None:
    """None where no tracing is asked for. `tell` is told why spans cannot be sent. Raises ConfigError where
    the extra is not installed."""
    if settings.tracing is None:
        return None
    check_extras(settings)
    from sovereign_ai.gateway.tracing import start_tracing

    return start_tracing(settings, settings.tracing, tell)


def check_extras(settings: GatewaySettings) -> None:
    """Raises ConfigError unless everything is installed that `settings` ask for."""
    if settings.tracing is None:
        return
    try:
        import sovereign_ai.gateway.tracing  # noqa: F401
    except ImportError as error:
        raise _missing(settings.tracing) from error


def _missing(tracing: TracingSettings) -> ConfigError:
    where = f"{tracing.where}: " if tracing.where else ""
    return ConfigError(
        f"{where}`gateway.tracing` needs OpenTelemetry, which is not installed",
        f"install the extra: {sys.executable} -m pip install 'sovereign-ai[tracing]'",
    )
