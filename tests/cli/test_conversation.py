from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sovereign_ai.cli import conversation
from sovereign_ai.cli.conversation import Answer, ask
from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.deploy.processes import identify
from sovereign_ai.deploy.state import RunState, write_json
from sovereign_ai.errors import DeployError, NotRunning
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.spec import Route, Routes, Task

HELLO = [{"role": "user", "content": "Hello"}]


class FakeGateway:
    """Answers every request with the same bytes and closes. Keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self.heads: list[str] = []
        self.bodies: list[Any] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb") as stream:
                    head = "".join(iter(lambda: stream.readline().decode().rstrip("\r\n"), ""))
                    if not head:
                        return
                    length = int(re.findall(r"(?i)content-length: (\d+)", head)[0])
                    self.heads.append(head)
                    self.bodies.append(json.loads(stream.read(length)))
                    connection.sendall(self._answer)

    def close(self) -> None:
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()


Gateway = Callable[[bytes], FakeGateway]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made: list[FakeGateway] = []

    def make(answer: bytes) -> FakeGateway:
        made.append(FakeGateway(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def delta(text: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {} if text is None else {"content": text}}]}


def stream(*events: dict[str, Any] | str, done: bool = True) -> bytes:
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    texts += ["[DONE]"] if done else []
    chunks = [f"data: {text}\n\n".encode() for text in texts]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return _head("200 OK", "Transfer-Encoding: chunked") + body + (b"0\r\n\r\n" if done else b"")


def refusal(status: str, body: str) -> bytes:
    return _head(status, f"Content-Length: {len(body.encode())}") + body.encode()


def _head(status: str, header: str) -> bytes:
    return f"HTTP/1.1 {status}\r\n{header}\r\n\r\n".encode()


def test_an_answer_streams_and_is_counted(gateway: Gateway) -> None:
    fake = gateway(
        stream(
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            delta("Hel"),
            delta("lo"),
            delta(None),
            {"choices": [], "usage": {"completion_tokens": 2}},
        )
    )
    texts: list[str] = []
    answer = ask(fake.url, "sk-1", "smol", HELLO, {"temperature": 0}, on_text=texts.append)
    assert texts == ["Hel", "lo"]
    assert (answer.text, answer.tokens) == ("Hello", 2)
    assert answer.seconds >= 0
    assert answer.first_token_s > 0
    assert "Authorization: Bearer sk-1" in fake.heads[0]
    assert fake.bodies == [
        {
            "model": "smol",
            "messages": HELLO,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
        }
    ]


def test_an_answer_of_nothing_is_empty(gateway: Gateway) -> None:
    answer = ask(gateway(stream()).url, "k", "m", HELLO, {})
    assert (answer.text, answer.tokens, answer.first_token_s) == ("", 0, 0)


def test_comments_in_the_stream_are_no_events(gateway: Gateway) -> None:
    fake = gateway(stream(delta("a"), "").replace(b"data: \n\n", b": ping\n\n"))
    assert ask(fake.url, "k", "m", HELLO, {}).text == "a"


def test_the_speed_is_of_the_tokens_after_the_first() -> None:
    assert Answer("", 11, 2.0, 0.5).tokens_per_second == 5.0
    assert Answer("", 1, 2.0, 0.5).tokens_per_second == 0
    assert Answer("", 5, 0.0, 0.5).tokens_per_second == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "no model `x`"}}', "no model `x`"),
        ("<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        ('{"error": "text"}', '{"error": "text"}'),
        ("[]", "[]"),
        ("", ""),
    ],
)
def test_a_refusal_has_the_gateways_words(gateway: Gateway, body: str, said: str) -> None:
    with pytest.raises(DeployError) as caught:
        ask(gateway(refusal("404 Not Found", body)).url, "k", "m", HELLO, {})
    assert caught.value.message == f"the gateway refused (404): {said}"


def test_an_error_in_the_middle_breaks_the_answer_off(gateway: Gateway) -> None:
    fake = gateway(stream(delta("a"), {"error": {"message": "the engine ended"}}))
    with pytest.raises(DeployError, match="the answer broke off: the engine ended"):
        ask(fake.url, "k", "m", HELLO, {})


def test_half_an_answer_is_no_answer(gateway: Gateway) -> None:
    fake = gateway(stream(delta("a"), done=False))
    with pytest.raises(DeployError, match="broke off: the gateway closed the connection"):
        ask(fake.url, "k", "m", HELLO, {})


def test_nobody_there_is_not_running() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(NotRunning, match=f"the gateway at {url} does not answer: .*refused") as caught:
        ask(url, "k", "m", HELLO, {})
    assert caught.value.hint == "see: sovereign status"


def test_what_is_no_http_does_not_answer(gateway: Gateway) -> None:
    with pytest.raises(NotRunning, match="does not answer"):
        ask(gateway(b"HELLO\r\n").url, "k", "m", HELLO, {})


def route(model: str, task: Task) -> Route:
    return Route(model=model, task=task, context=64, folder="/m", endpoints=())


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(home=tmp_path, storage=tmp_path)
    found.run.mkdir()
    routes = Routes(routes=(route("minilm", "embed"), route("smol", "chat")))
    (found.run / "routes.json").write_bytes(msgspec.json.encode(routes))
    return found


def test_the_first_chat_model_is_asked(paths: Paths) -> None:
    assert conversation.first_chat_model(paths.run) == "smol"
    (paths.run / "routes.json").write_bytes(msgspec.json.encode(Routes(routes=(route("minilm", "embed"),))))
    with pytest.raises(NotRunning, match="no chat model is served"):
        conversation.first_chat_model(paths.run)


def test_a_passing_key_lives_as_long_as_its_command(paths: Paths) -> None:
    with pytest.raises(KeyboardInterrupt), conversation.passing_key(paths.ledger, "chat") as secret:
        (record,) = Ledger(paths.ledger).list_keys()
        assert record.name == "chat (passing)"
        assert record.expires is not None
        assert record.prefix.endswith(secret[-4:])
        raise KeyboardInterrupt
    assert Ledger(paths.ledger).list_keys() == []


def test_chat_asks_the_running_stack(
    paths: Paths, gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = gateway(stream(delta("Hi"), delta(" there")))
    own = identify(os.getpid())
    state = RunState(run_id="1", supervisor=own, gateway_url=fake.url, started_at=1.0)
    write_json(paths.run / "state.json", state)
    chat = conversation.chat
    chat(paths, Console(), "Hello", model=None, system=None, options={})
    chat(paths, Console(), "Hello", model="other", system="Be brief", options={"max_tokens": 5})
    assert capsys.readouterr().out == "Hi there\nHi there\n"
    assert [body["model"] for body in fake.bodies] == ["smol", "other"]
    assert fake.bodies[0]["messages"] == HELLO
    assert fake.bodies[1]["messages"] == [{"role": "system", "content": "Be brief"}, *HELLO]
    assert fake.bodies[1]["max_tokens"] == 5


def test_chat_needs_a_running_stack(paths: Paths) -> None:
    with pytest.raises(NotRunning, match="nothing is running here"):
        conversation.chat(paths, Console(), "Hello", model=None, system=None, options={})
