"""Asks a running stack through its own gateway, as any client would."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.deploy import local
from sovereign_ai.errors import DeployError, NotRunning
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.spec import Routes

TIMEOUT_S = 300.0
"""Longest silence of the gateway: a long prompt on a CPU takes minutes until the first token."""

PASSING_KEY_S = 3600.0
"""Life of the key that a command makes for itself; it is deleted when the command ends."""


class Answer(msgspec.Struct, frozen=True):
    """`seconds` from the first token to the last."""

    text: str
    tokens: int
    seconds: float
    first_token_s: float
    prompt_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, over the time they took; 0 for a single token."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0


def chat(
    paths: Paths,
    console: Console,
    question: str,
    *,
    model: str | None,
    system: str | None,
    options: Mapping[str, Any],
) -> None:
    """One question, the answer streamed to the terminal."""
    state = local.running(paths)
    if state is None:
        raise NotRunning("nothing is running here", "start the stack: sovereign up")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    with passing_key(paths.ledger, "chat") as key:
        chosen = model or first_chat_model(paths.run)
        ask(state.gateway_url, key, chosen, messages, options, on_text=console.raw)
    console.raw("\n")


def first_chat_model(run: Path) -> str:
    """The first chat model of run/routes.json. Raises NotRunning where none is served."""
    routes = msgspec.json.decode((run / "routes.json").read_bytes(), type=Routes)
    for route in routes.routes:
        if route.task == "chat":
            return route.model
    raise NotRunning("no chat model is served", "add one to factory.yaml")


@contextmanager
def passing_key(ledger_file: Path, name: str) -> Iterator[str]:
    """An API key for the length of a command: who may write the ledger may also ask."""
    with Ledger(ledger_file) as ledger:
        record, secret = ledger.create_key(f"{name} (passing)", expires_s=PASSING_KEY_S)
        try:
            yield secret
        finally:
            ledger.delete_key(record.id)


def ask(
    base_url: str,
    key: str,
    model: str,
    messages: list[dict[str, str]],
    options: Mapping[str, Any],
    *,
    on_text: Any = None,
) -> Answer:
    """Stream one chat completion. Raises DeployError with the gateway's own message where it refuses."""
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    asked = time.monotonic()
    texts: list[str] = []
    first = last = asked
    tokens = prompt_tokens = 0
    for event in _events(base_url, key, body):
        for choice in event.get("choices", ()):
            if text := choice["delta"].get("content"):
                first = first if texts else time.monotonic()
                last = time.monotonic()
                texts.append(text)
                if on_text:
                    on_text(text)
        if usage := event.get("usage"):
            tokens, prompt_tokens = usage["completion_tokens"], usage.get("prompt_tokens", 0)
    return Answer("".join(texts), tokens, last - first, first - asked, prompt_tokens)


def _connection(address: SplitResult) -> http.client.HTTPConnection:
    """To the gateway on this machine, under a name that its certificate need not have."""
    host, port = address.hostname or "", address.port
    if address.scheme != "https":
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    context = ssl._create_unverified_context()  # noqa: S323
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


def _events(base_url: str, key: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    address = urlsplit(base_url)
    connection = _connection(address)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise _refused(response.status, response.read())
        for line in response:
            if line.startswith(b"data: [DONE]"):
                return
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise DeployError(f"the answer broke off: {event['error']['message']}", "see: sovereign logs")
            yield event
        raise DeployError("the answer broke off: the gateway closed the connection", "see: sovereign logs")
    except (OSError, http.client.HTTPException) as error:
        raise NotRunning(
            f"the gateway at {base_url} does not answer: {error}", "see: sovereign status"
        ) from error
    finally:
        connection.close()


def _refused(status: int, body: bytes) -> DeployError:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")[:200]
    return DeployError(f"the gateway refused ({status}): {message}")
