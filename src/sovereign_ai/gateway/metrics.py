"""What /metrics tells: every name of the gateway is declared here."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sovereign_ai.gateway.journal import RequestRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST

TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a cached short prompt on a fast card to a full context on the slowest one."""
REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

UNKNOWN = ""
"""The model label of requests that name no model we serve: clients must not be able to invent labels."""


class Metrics:
    """Counters of one gateway, in a registry of their own so that several can live in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        model = ("model",)
        self.requests = Counter(
            "sovereign_requests_total",
            "Requests under /v1, by HTTP status",
            ("model", "status"),
            registry=registry,
        )
        self.ttft = Histogram(
            "sovereign_ttft_seconds",
            "Arrival to first token",
            model,
            registry=registry,
            buckets=TTFT_BUCKETS_S,
        )
        self.duration = Histogram(
            "sovereign_request_seconds",
            "Arrival to last byte",
            model,
            registry=registry,
            buckets=REQUEST_BUCKETS_S,
        )
        self.prompt_tokens = Counter("sovereign_prompt_tokens_total", "Tokens read", model, registry=registry)
        self.completion_tokens = Counter(
            "sovereign_completion_tokens_total", "Tokens generated", model, registry=registry
        )
        self.running = Gauge(
            "sovereign_requests_running", "Requests being answered", model, registry=registry
        )
        self.upstream_failures = Counter(
            "sovereign_upstream_failures_total",
            "Requests that an endpoint broke or refused",
            ("model", "endpoint"),
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
        self.ejections = Counter(
            "sovereign_ejections_total",
            "Times an endpoint was left alone because it failed again and again",
            ("model", "endpoint"),
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
            ("model", "endpoint"),
            registry=registry,
        )

    def forget(self, model: str, endpoint: str) -> None:
        """An endpoint that is no more has no health; what was counted of it stays."""
        self.endpoint_up.remove(model, endpoint)

    def observe(self, record: RequestRecord, duration_s: float) -> None:
        """Count a finished request."""
        model = record.model or UNKNOWN
        self.requests.labels(model, str(record.status)).inc()
        self.duration.labels(model).observe(duration_s)
        self.prompt_tokens.labels(model).inc(record.prompt_tokens)
        self.completion_tokens.labels(model).inc(record.completion_tokens)
        if record.first_token is not None:
            self.ttft.labels(model).observe(record.first_token - record.started)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
