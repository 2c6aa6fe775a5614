"""A request as a trace of OpenTelemetry: what it waited for, which endpoints were tried, how it ended.

The one door to opentelemetry, which is an extra: only `extras` imports this, once factory.yaml asks for it.
Names are those of https://opentelemetry.io/docs/specs/semconv/gen-ai/. Neither prompts nor answers nor keys
get here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from yarl import URL

from sovereign_ai import __version__
from sovereign_ai.config import GatewaySettings, TracingSettings
from sovereign_ai.errors import ApiError
from sovereign_ai.gateway.journal import MAX_REASON_CHARACTERS, RequestRecord
from sovereign_ai.gateway.pool import Upstream

OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
}
"""Path → `gen_ai.operation.name`. Requests for other paths, which no engine answers, have no trace."""

TRACES_PATH = "/v1/traces"
"""Behind the endpoint, as OTLP/HTTP has it."""
EXPORT_TIMEOUT_S = 5.0
"""For one batch of spans, all tries together."""
MAX_SPANS = 4096
"""Ended spans that wait to be sent; more are dropped. About 10 MB."""
BATCH_SPANS = 512
BATCH_DELAY_MS = 2000.0
CLOSE_S = 0.5
"""How long the end of the gateway waits for the last spans to be sent."""
TELL_INTERVAL_S = 60.0
"""How often it is told that spans cannot be sent."""

Attributes = dict[str, Any]

_PASSED_ON = (("max_tokens", "gen_ai.request.max_tokens"), ("temperature", "gen_ai.request.temperature"))
_PROPAGATOR = TraceContextTextMapPropagator()


class Attempt:
    """A request to one endpoint: a span from its sending to the end of its answer."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, failure: BaseException | None = None) -> None:
        if failure is not None:
            _fail(self._span, failure)
        self._span.end()


class Trace:
    """The spans of one request. A trace that is not sampled is carried on and costs next to nothing."""

    def __init__(self, tracer: trace.Tracer, span: Span, operation: str) -> None:
        self._tracer, self._span, self._operation = tracer, span, operation
        self._context = trace.set_span_in_context(span, Context())
        self._attempts = 0

    def order(self, sampling: Mapping[str, Any]) -> None:
        """What is asked of an engine: vLLM's sampling parameters."""
        for name, attribute in _PASSED_ON:
            if name in sampling:
                self._span.set_attribute(attribute, sampling[name])

    @contextmanager
    def queue(self, model: str) -> Iterator[None]:
        """The wait for a place in an engine of `model`."""
        span = self._tracer.start_span(f"queue {model}", self._context)
        try:
            yield
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            span.end()

    @contextmanager
    def attempt(self, upstream: Upstream) -> Iterator[Attempt]:
        """A try at an endpoint. `headers` in the block are those for it. Whoever uses it ends it, but for one
        that fails within the block."""
        self._attempts += 1
        url = URL(upstream.url)
        attributes: Attributes = {
            "sovereign.endpoint": upstream.name,
            "sovereign.attempt": self._attempts,
            "gen_ai.request.model": upstream.route_model,
            "server.address": url.host or "",
            "server.port": url.port or 0,
        }
        name = f"attempt {upstream.name}"
        span = self._tracer.start_span(name, self._context, SpanKind.CLIENT, attributes)
        attempt = Attempt(span)
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            try:
                yield attempt
            except BaseException as error:
                attempt.end(error)
                raise

    def headers(self) -> bytes:
        """Lines of W3C trace context, for the attempt under way."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in carrier.items())

    def end(self, record: RequestRecord) -> None:
        """The request has ended as its record says."""
        if self._span.is_recording():
            asked = record.asked or record.model
            if asked is not None:
                self._span.update_name(f"{self._operation} {asked}")
            self._span.set_attributes(_ended(record, asked))
            if record.status >= 500:
                self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Begins traces, of which `processor` gets the spans. `address` and `port`: where the gateway listens."""

    def __init__(self, processor: SpanProcessor, *, sample: float, address: str, port: int) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=Resource({"service.name": "sovereign-gateway", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sovereign_ai.gateway", __version__)
        self._server: Attributes = {
            "server.address": address,
            "server.port": port,
            "gen_ai.provider.name": "sovereign",
        }

    def begin(self, path: str, header: Callable[[bytes], str | None]) -> Trace | None:
        """The trace of a request for `path`; it goes on the one that its headers name."""
        operation = OPERATIONS.get(path)
        if operation is None:
            return None
        given = {name: header(name.encode()) for name in ("traceparent", "tracestate")}
        carrier = {name: value for name, value in given.items() if value is not None}
        parent = _PROPAGATOR.extract(carrier, Context())
        attributes: Attributes = {**self._server, "gen_ai.operation.name": operation}
        span = self._tracer.start_span(operation, parent, SpanKind.SERVER, attributes)
        return Trace(self._tracer, span, operation)

    def close(self) -> None:
        """Send what is left. Where nobody takes it, it is given up after CLOSE_S."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def start_tracing(
    settings: GatewaySettings, wanted: TracingSettings, tell: Callable[[str], object]
) -> Tracing:
    """Spans go to the endpoint of `wanted`, from a thread of their own. `tell` is told, there, why they
    cannot."""
    _listen_to_exporter(tell)
    processor = BatchSpanProcessor(
        OTLPSpanExporter(wanted.endpoint.rstrip("/") + TRACES_PATH, timeout=EXPORT_TIMEOUT_S),
        max_queue_size=MAX_SPANS,
        schedule_delay_millis=BATCH_DELAY_MS,
        max_export_batch_size=BATCH_SPANS,
    )
    return Tracing(processor, sample=wanted.sample, address=settings.host, port=settings.port)


class Complaints(logging.Handler):
    """Passes on what opentelemetry logs, now and then: where nobody listens it complains with every batch."""

    def __init__(self, tell: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._tell, self._clock = tell, clock
        self._told: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        if self._told is None or now - self._told >= TELL_INTERVAL_S:
            self._told = now
            self._tell(record.getMessage()[:MAX_REASON_CHARACTERS])


def _listen_to_exporter(tell: Callable[[str], object]) -> None:
    """Its log would otherwise be plain lines between our JSON ones."""
    logger = logging.getLogger("opentelemetry")
    logger.handlers[:] = [Complaints(tell)]
    logger.propagate = False


def _ended(record: RequestRecord, asked: str | None) -> Attributes:
    attributes: Attributes = {"http.response.status_code": record.status}
    if asked is not None:
        attributes["gen_ai.request.model"] = asked
    if record.error is not None:
        attributes["error.type"] = record.error
    if record.answered:
        attributes["gen_ai.response.model"] = record.model
        attributes["gen_ai.usage.input_tokens"] = record.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = record.completion_tokens
    if record.finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = record.finish_reasons
    return attributes


def _fail(span: Span, error: BaseException) -> None:
    """By its name only: what a message quotes may be a client's. Who was interrupted did not fail."""
    if isinstance(error, Exception):
        code = error.code if isinstance(error, ApiError) else None
        span.set_attribute("error.type", code or type(error).__name__)
        span.set_status(StatusCode.ERROR)
