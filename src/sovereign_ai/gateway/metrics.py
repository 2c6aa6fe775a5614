"""What /metrics tells: every name of the gateway is declared here.

Where OpenTelemetry's semantic conventions for generative AI have a name, it is that one, as Prometheus writes
it (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/), with the buckets they advise.
"""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.totals import Family, families_of

CONTENT_TYPE = CONTENT_TYPE_LATEST

TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Up to 10 s as advised; a full context on a slow card takes longer."""
TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
REQUEST_BUCKETS_S = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
)  # fmt: skip
QUEUE_BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)

UNKNOWN = ""
"""The model label of requests that name no model we serve: clients must not be able to invent labels."""
MAX_KEY_LABELS = 200
OTHER = "other"
"""The key label of all keys after the first 200: each value is a time series for ever."""

LEAST = frozenset({"sovereign_endpoint_up", "sovereign_routes_valid"})
"""Gauges of which the least of several processes is told: the others are added up."""

_MODEL = "gen_ai_request_model"


class _Answered(NamedTuple):
    """The children of one model and endpoint: looking them up would cost more than counting."""

    duration: Histogram
    queue_time: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    ttft: Histogram
    token_time: Histogram


class Metrics:
    """Counters of one gateway, in a registry of their own so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._children: dict[tuple[str, str], _Answered] = {}
        self._keys: dict[str, tuple[Counter, Counter]] = {}
        model = ("model",)
        by_endpoint = ("model", "endpoint")
        self.requests = Counter(
            "sovereign_requests_total",
            "Requests under /v1, by HTTP status",
            ("model", "status"),
            registry=registry,
        )
        self.ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Arrival to first token",
            (_MODEL, "endpoint"),
            registry=registry,
            buckets=TTFT_BUCKETS_S,
        )
        self.token_time = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time between the tokens of an answer, on the average of the answer",
            (_MODEL, "endpoint"),
            registry=registry,
            buckets=TOKEN_BUCKETS_S,
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Arrival to last byte",
            (_MODEL,),
            registry=registry,
            buckets=REQUEST_BUCKETS_S,
        )
        self.prompt_tokens = Counter(
            "sovereign_prompt_tokens_total", "Tokens read", by_endpoint, registry=registry
        )
        self.completion_tokens = Counter(
            "sovereign_completion_tokens_total", "Tokens generated", by_endpoint, registry=registry
        )
        self.key_tokens = Counter(
            "sovereign_key_tokens_total",
            "Tokens that a key was billed, by kind: prompt, completion",
            ("key", "kind"),
            registry=registry,
        )
        self.queue_time = Histogram(
            "sovereign_queue_seconds",
            "Waiting for a place in an engine",
            model,
            registry=registry,
            buckets=QUEUE_BUCKETS_S,
        )
        self.queue_depth = Gauge("sovereign_queue_depth", "Requests that wait", model, registry=registry)
        self.rejections = Counter(
            "sovereign_rejections_total",
            "Requests that were not let in, by reason",
            ("model", "reason"),
            registry=registry,
        )
        self.usage_lost = Counter(
            "sovereign_usage_lost_total",
            "Requests whose usage could not be written down",
            registry=registry,
        )
        self.running = Gauge(
            "sovereign_requests_running", "Requests being answered", model, registry=registry
        )
        self.upstream_failures = Counter(
            "sovereign_upstream_failures_total",
            "Requests that an endpoint broke or refused",
            by_endpoint,
            registry=registry,
        )
        self.retries = Counter(
            "sovereign_retries_total",
            "Requests that were asked again elsewhere before their first token",
            model,
            registry=registry,
        )
        self.continuations = Counter(
            "sovereign_continuations_total",
            "Answers that broke off and were continued by another endpoint",
            model,
            registry=registry,
        )
        self.fallbacks = Counter(
            "sovereign_fallbacks_total",
            "Requests for `model` that `to` answered",
            ("model", "to"),
            registry=registry,
        )
        self.ejections = Counter(
            "sovereign_ejections_total",
            "Times an endpoint was left alone because it failed again and again",
            by_endpoint,
            registry=registry,
        )
        self.routes_valid = Gauge(
            "sovereign_routes_valid",
            "0 while routes.json is broken and older routes serve on",
            registry=registry,
        )
        self.routes_valid.set(1)
        self.endpoint_up = Gauge(
            "sovereign_endpoint_up",
            "1 while the endpoint is healthy",
            by_endpoint,
            registry=registry,
        )

    def forget(self, model: str, endpoint: str) -> None:
        """An endpoint that is no more has no health; what was counted of it stays."""
        self.endpoint_up.remove(model, endpoint)

    def observe(self, record: RequestRecord, duration_s: float) -> None:
        """Count a finished request."""
        model = record.model or UNKNOWN
        self.requests.labels(model, str(record.status)).inc()
        if not record.answered:
            self.duration.labels(model).observe(duration_s)
            return
        found = self._answered(model, record.endpoint or UNKNOWN)
        found.duration.observe(duration_s)
        found.queue_time.observe(record.queue_s)
        found.prompt_tokens.inc(record.prompt_tokens)
        found.completion_tokens.inc(record.completion_tokens)
        self._observe_key(record)
        if record.asked is not None:
            self.fallbacks.labels(record.asked, model).inc()
        if record.ttft_s is not None:
            found.ttft.observe(record.ttft_s)
            if record.completion_tokens > 1:
                found.token_time.observe((duration_s - record.ttft_s) / (record.completion_tokens - 1))

    def _answered(self, model: str, endpoint: str) -> _Answered:
        if (found := self._children.get((model, endpoint))) is None:
            found = self._children[model, endpoint] = _Answered(
                duration=self.duration.labels(model),
                queue_time=self.queue_time.labels(model),
                prompt_tokens=self.prompt_tokens.labels(model, endpoint),
                completion_tokens=self.completion_tokens.labels(model, endpoint),
                ttft=self.ttft.labels(model, endpoint),
                token_time=self.token_time.labels(model, endpoint),
            )
        return found

    def reject(self, model: str | None, reason: str) -> None:
        self.rejections.labels(model or UNKNOWN, reason).inc()

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def families(self) -> list[Family]:
        """As values, for the totals of several processes."""
        return families_of(self._registry)

    def _observe_key(self, record: RequestRecord) -> None:
        if record.key is None:
            return
        label = record.key if record.key in self._keys or len(self._keys) < MAX_KEY_LABELS else OTHER
        if (tokens := self._keys.get(label)) is None:
            count = self.key_tokens.labels
            tokens = self._keys[label] = count(label, "prompt"), count(label, "completion")
        tokens[0].inc(record.prompt_tokens)
        tokens[1].inc(record.completion_tokens)
