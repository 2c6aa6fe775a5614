"""The official `openai` client and plain HTTP against the running stack."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.conftest import Stack

pytestmark = pytest.mark.engine

MODEL = "smollm2-135m"
EMBEDDER = "minilm-l6-v2"
QUESTION: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0, timeout=120) as client:
        yield client


def post(stack: Stack, path: str, body: bytes, key: str | None = None) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
    headers = {"Authorization": f"Bearer {key or stack.key}", "Content-Type": "application/json"}
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    result = answer.status, json.loads(answer.read())
    connection.close()
    return result


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)


def test_chat_ends_at_max_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_streaming_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "The capital of France is Paris."
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_stop_words_and_seed(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stop=[" is"])
    assert stopped.choices[0].message.content == "The capital of France"
    first, second = (
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1.5, seed=7, max_tokens=24, top_p=0.9
        )
        for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=4)
    assert answer.choices[0].text.startswith(" four")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDER, input=["a cat", "a kitten", "the stock market"])
    cat, kitten, market = (item.embedding for item in answer.data)
    assert len(cat) == 384
    assert sum(x * x for x in cat) == pytest.approx(1.0, abs=1e-4)

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert similarity(cat, kitten) > similarity(cat, market) + 0.3
    as_floats = client.embeddings.create(model=EMBEDDER, input="a cat", encoding_format="float")
    assert as_floats.data[0].embedding == pytest.approx(cat, abs=1e-5)
    assert as_floats.usage.prompt_tokens == 4


def test_many_embeddings_keep_their_order(client: openai.OpenAI) -> None:
    texts = [f"text number {number}" for number in range(150)]
    together = client.embeddings.create(model=EMBEDDER, input=texts)
    assert [item.index for item in together.data] == list(range(150))
    alone = client.embeddings.create(model=EMBEDDER, input=texts[149])
    assert together.data[149].embedding == pytest.approx(alone.data[0].embedding, abs=1e-4)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, EMBEDDER]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_wrong_key(stack: Stack) -> None:
    with (
        openai.OpenAI(base_url=f"{stack.url}/v1", api_key="sk-" + "0" * 64, max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="API key"),
    ):
        stranger.models.list()


def test_a_missing_key(stack: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    connection.close()


def test_a_key_revoked_while_running(stack: Stack) -> None:
    key = stack.new_key("passing guest")
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0) as guest:
        guest.models.list()
        assert stack.run("keys", "revoke", "passing guest").returncode == 0
        with pytest.raises(openai.AuthenticationError):
            guest.models.list()


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)


def test_a_prompt_longer_than_the_context(client: openai.OpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "word " * 9000}
    ]
    with pytest.raises(openai.BadRequestError, match="8192") as caught:
        client.chat.completions.create(model=MODEL, messages=messages)
    assert caught.value.code == "context_length_exceeded"


def test_a_text_longer_than_the_embedder_takes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="256"):
        client.embeddings.create(model=EMBEDDER, input="word " * 400)


def test_malformed_json(stack: Stack) -> None:
    status, body = post(stack, "/v1/chat/completions", b'{"model": "smollm2-135m", "messages": [')
    assert status == 400
    assert "JSON" in json.dumps(body)


def test_a_body_over_the_limit(stack: Stack) -> None:
    status, body = post(stack, "/v1/chat/completions", b"x" * (4 * 1024 * 1024 + 1))
    assert status == 413
    assert "error" in body


def test_a_parameter_that_is_not_carried_through(stack: Stack) -> None:
    request = {"model": MODEL, "messages": QUESTION, "reasoning_effort": "low"}
    status, body = post(stack, "/v1/chat/completions", json.dumps(request).encode())
    assert status == 400
    assert body["error"]["param"] == "reasoning_effort"  # type: ignore[index]


def test_health_and_metrics(stack: Stack) -> None:
    for path, text in (("/healthz", b""), ("/readyz", b""), ("/metrics", b"sovereign_")):
        connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        assert text in answer.read()
        connection.close()
