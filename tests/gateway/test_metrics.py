from __future__ import annotations

from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.metrics import MAX_KEY_LABELS, Metrics


def test_a_finished_request_is_counted() -> None:
    metrics = Metrics()
    record = RequestRecord(
        method="POST",
        path="/",
        started=10.0,
        status=200,
        model="m",
        key="key-1",
        endpoint="up",
        answered=True,
        first_token=10.2,
        prompt_tokens=3,
        completion_tokens=4,
        queue_s=0.05,
    )
    metrics.observe(record, 2.0)
    text = metrics.text().decode()
    assert 'sovereign_requests_total{model="m",status="200"} 1.0' in text
    bucket = "gen_ai_server_time_to_first_token_seconds_bucket"
    assert bucket + '{endpoint="up",gen_ai_request_model="m",le="0.25"} 1.0' in text
    assert bucket + '{endpoint="up",gen_ai_request_model="m",le="0.1"} 0.0' in text
    assert 'gen_ai_server_request_duration_seconds_sum{gen_ai_request_model="m"} 2.0' in text
    sum_ = 'gen_ai_server_time_per_output_token_seconds_sum{endpoint="up",gen_ai_request_model="m"} 0.6'
    assert sum_ in text
    assert 'sovereign_prompt_tokens_total{endpoint="up",model="m"} 3.0' in text
    assert 'sovereign_completion_tokens_total{endpoint="up",model="m"} 4.0' in text
    assert 'sovereign_key_tokens_total{key="key-1",kind="completion"} 4.0' in text
    assert 'sovereign_queue_seconds_sum{model="m"} 0.05' in text


def test_a_request_that_no_engine_answered_took_no_tokens() -> None:
    metrics = Metrics()
    metrics.observe(RequestRecord(method="POST", path="/", started=0.0, status=503, prompt_tokens=9), 0.1)
    metrics.reject(None, "engine_unavailable")
    text = metrics.text().decode()
    assert "sovereign_prompt_tokens_total{" not in text
    assert 'sovereign_rejections_total{model="",reason="engine_unavailable"} 1.0' in text


def test_there_are_only_so_many_key_labels() -> None:
    metrics = Metrics()
    for number in range(MAX_KEY_LABELS + 5):
        record = RequestRecord(
            method="POST", path="/", started=0.0, key=f"k{number}", answered=True, prompt_tokens=1
        )
        metrics.observe(record, 0.1)
    text = metrics.text().decode()
    assert text.count('kind="prompt"} ') == 2 * (MAX_KEY_LABELS + 1), "each with the time of its making"
    assert 'sovereign_key_tokens_total{key="other",kind="prompt"} 5.0' in text


def test_requests_without_a_known_model_share_one_label() -> None:
    metrics = Metrics()
    metrics.observe(RequestRecord(method="POST", path="/", started=0.0, status=404), 0.1)
    text = metrics.text().decode()
    assert 'sovereign_requests_total{model="",status="404"} 1.0' in text
    assert "time_to_first_token_seconds_count" not in text


def test_two_gateways_in_one_process_do_not_clash() -> None:
    first, second = (
        [line for line in metrics.text().splitlines() if b"_created" not in line]
        for metrics in (Metrics(), Metrics())
    )
    assert first == second


def test_a_model_that_answers_for_another() -> None:
    metrics = Metrics()
    record = RequestRecord(method="POST", path="/", started=0.0, model="b", asked="a", status=200)
    metrics.observe(record, 0.1)
    assert "sovereign_fallbacks_total{" not in metrics.text().decode(), "it did not answer"
    record.answered = True
    metrics.observe(record, 0.1)
    assert 'sovereign_fallbacks_total{model="a",to="b"} 1.0' in metrics.text().decode()
