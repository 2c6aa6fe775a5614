from __future__ import annotations

from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.metrics import Metrics


def test_a_finished_request_is_counted() -> None:
    metrics = Metrics()
    record = RequestRecord(
        method="POST",
        path="/",
        started=10.0,
        status=200,
        model="m",
        first_token=10.2,
        prompt_tokens=3,
        completion_tokens=4,
    )
    metrics.observe(record, 2.0)
    text = metrics.text().decode()
    assert 'sovereign_requests_total{model="m",status="200"} 1.0' in text
    assert 'sovereign_ttft_seconds_bucket{le="0.25",model="m"} 1.0' in text
    assert 'sovereign_ttft_seconds_bucket{le="0.1",model="m"} 0.0' in text
    assert 'sovereign_request_seconds_sum{model="m"} 2.0' in text
    assert 'sovereign_prompt_tokens_total{model="m"} 3.0' in text
    assert 'sovereign_completion_tokens_total{model="m"} 4.0' in text


def test_requests_without_a_known_model_share_one_label() -> None:
    metrics = Metrics()
    metrics.observe(RequestRecord(method="POST", path="/", started=0.0, status=404), 0.1)
    text = metrics.text().decode()
    assert 'sovereign_requests_total{model="",status="404"} 1.0' in text
    assert "sovereign_ttft_seconds_count" not in text


def test_two_gateways_in_one_process_do_not_clash() -> None:
    assert Metrics().text() == Metrics().text()
