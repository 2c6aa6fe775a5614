"""What Prometheus' operator and Grafana take: where metrics are, and a dashboard. Pure."""

from __future__ import annotations

import json

from sovereign_ai.config import ClusterSettings
from sovereign_ai.render.kubernetes import labels as names
from sovereign_ai.render.kubernetes.agent import COMPONENT as AGENT
from sovereign_ai.render.kubernetes.engine import COMPONENT
from sovereign_ai.render.kubernetes.gateway import NAME as GATEWAY
from sovereign_ai.render.kubernetes.labels import Object, described, owned

OPERATOR = "monitoring.coreos.com/v1"
INTERVAL = "15s"

PANELS = (
    ("Requests a second", "sum by (model) (rate(sovereign_requests_total[1m]))", "reqps"),
    ("Running", "sum by (model) (sovereign_requests_running)", "short"),
    ("Waiting", "sum by (model) (sovereign_queue_depth)", "short"),
    ("Tokens read a second", "sum by (model) (rate(sovereign_prompt_tokens_total[1m]))", "short"),
    ("Tokens generated a second", "sum by (model) (rate(sovereign_completion_tokens_total[1m]))", "short"),
    (
        "Seconds to the first token, 95 of 100",
        "histogram_quantile(0.95, sum by (le, gen_ai_request_model) "
        "(rate(gen_ai_server_time_to_first_token_seconds_bucket[5m])))",
        "s",
    ),
    ("Endpoints that answer", "sovereign_endpoint_up", "short"),
    ("Continued and retried", "sum by (model) (rate(sovereign_continuations_total[5m]))", "short"),
)
"""Title, query, unit."""


def monitoring(settings: ClusterSettings) -> list[Object]:
    if not settings.monitoring:
        return []
    monitors = [
        _monitor(settings, "gateway", {names.NAME: GATEWAY}, "http"),
        _monitor(settings, "engines", {names.COMPONENT: COMPONENT}, "metrics"),
    ]
    if settings.agent:
        monitors.append(_pod_monitor(settings))
    labels = {**owned(settings.namespace), "grafana_dashboard": "1"}
    data = {"sovereign.json": json.dumps(_dashboard(), indent=2, sort_keys=True) + "\n"}
    return [*monitors, described("ConfigMap", "sovereign-dashboard", settings.namespace, labels, data=data)]


def _monitor(settings: ClusterSettings, name: str, selected: dict[str, str], port: str) -> Object:
    spec = {
        "selector": {"matchLabels": selected},
        "endpoints": [{"port": port, "path": "/metrics", "interval": INTERVAL}],
    }
    return described(
        "ServiceMonitor",
        f"sovereign-{name}",
        settings.namespace,
        owned(settings.namespace),
        api=OPERATOR,
        spec=spec,
    )


def _pod_monitor(settings: ClusterSettings) -> Object:
    """Agents have no Service: nobody asks for one of them by name."""
    spec = {
        "selector": {"matchLabels": {names.COMPONENT: AGENT}},
        "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics", "interval": INTERVAL}],
    }
    return described(
        "PodMonitor",
        "sovereign-agent",
        settings.namespace,
        owned(settings.namespace),
        api=OPERATOR,
        spec=spec,
    )


def _dashboard() -> Object:
    panels = [
        {
            "id": index + 1,
            "title": title,
            "type": "timeseries",
            "datasource": {"type": "prometheus", "uid": "${source}"},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
            "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
            "targets": [{"expr": query, "refId": "A"}],
        }
        for index, (title, query, unit) in enumerate(PANELS)
    ]
    source = {"name": "source", "type": "datasource", "query": "prometheus"}
    return {
        "title": "Sovereign AI Factory",
        "uid": "sovereign",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }
