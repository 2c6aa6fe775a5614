"""Requests and answers that pass through as they are: what the gateway reads of them all the same.

An endpoint that speaks OpenAI's protocol renders chats, parses tools and counts tokens itself. So bytes go
through untouched, but for three things: the model's name, where the endpoint knows it by another one; usage,
which the gateway asks for where the client did not, and keeps to itself then; and the rest of an answer that
broke off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

ANSWER_TOKENS = 1024
"""Reserved for an answer whose client gives no limit, where the endpoint's context is not known either."""

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly: what is reserved for a prompt; it is billed by the endpoint's own count."""

_END = re.compile(rb"\r?\n\r?\n")
_DATA = b"data:"
_NOTABLE = (b'"usage":{', b'"usage": {', b'"error":', b'"object":"error"', b"[DONE]")
"""In every event that asks for more than to be passed on. As keys only: inside of a text the quotes would
stand behind backslashes."""


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of a request."""

    model: str
    stream: bool | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    stream_options: _StreamOptions | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer, where the client gives one."""
        given = (self.max_completion_tokens, self.max_tokens, self.max_output_tokens)
        return next((value for value in given if value is not None), None)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class _Usage(msgspec.Struct, frozen=True):
    """OpenAI's two spellings; Anthropic's is the second."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0


class _Within(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


class _Seen(msgspec.Struct, frozen=True):
    """What is read of an answer or an event."""

    choices: list[msgspec.Raw] | None = None
    usage: _Usage | None = None
    response: _Within | None = None
    message: _Within | str | None = None
    error: Any = None
    object: str | None = None

    def usages(self) -> list[_Usage]:
        within = (self.response, self.message)
        found = [self.usage, *(one.usage for one in within if isinstance(one, _Within))]
        return [one for one in found if one is not None]


_asked_decoder = msgspec.json.Decoder(Asked)
_seen_decoder = msgspec.json.Decoder(_Seen)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def ask(body: bytes) -> Asked | None:
    """None where the body is not a request for a model."""
    try:
        return _asked_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def asks_for_usage(path: str, asked: Asked) -> bool:
    """Whether the gateway must ask for the usage, and keep it to itself."""
    return bool(asked.stream) and path in (CHAT, COMPLETIONS) and not asked.wants_usage


def request_body(path: str, asked: Asked, body: bytes, model: str) -> bytes:
    """What the endpoint gets, which knows the model as `model`."""
    if asked.model == model and not asks_for_usage(path, asked):
        return body
    fields: dict[str, Any] = dict(_fields_decoder.decode(body))
    fields["model"] = model
    if asks_for_usage(path, asked):
        options = fields.get("stream_options")
        given = msgspec.json.decode(options) if options is not None else None
        fields["stream_options"] = {**(given or {}), "include_usage": True}
    return _encoder.encode(fields)


def reserved_tokens(asked: Asked, body: bytes, context: int) -> tuple[int, int]:
    """Of prompt and answer, at a guess that is rather too high. `context` 0: unknown."""
    prompt = len(body) // CHARACTERS_PER_TOKEN + 1
    answer = asked.limit
    if answer is None:
        answer = max(1, context - prompt) if context else ANSWER_TOKENS
    return prompt, max(0, answer) * max(1, asked.n or 1)


def answer_usage(body: bytes) -> tuple[int, int] | None:
    """Tokens of prompt and answer that a whole answer reports."""
    counted = Count()
    counted.note(_read(body))
    return (counted.prompt, counted.answer) if counted.known else None


def error_text(body: bytes) -> str:
    """The message of an error, or the first bytes of whatever came instead."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:200].decode(errors="replace")
    inner = tree.get("error", tree) if isinstance(tree, dict) else tree
    message = inner.get("message") if isinstance(inner, dict) else inner
    return str(message)[:500]


class Count:
    """Tokens that an answer reports. Later reports replace earlier ones, and nothing replaces something."""

    def __init__(self) -> None:
        self.prompt = self.answer = 0
        self.known = False

    def note(self, seen: _Seen) -> None:
        for usage in seen.usages():
            self.known = True
            self.prompt = usage.prompt_tokens or usage.input_tokens or self.prompt
            self.answer = usage.completion_tokens or usage.output_tokens or self.answer


class Passage:
    """A stream on its way through. `hides_usage`: the client did not ask for the event that has it. `keeps`:
    whether what passes is kept, for an answer that may have to be continued; nothing is done to it before.

    Almost every read is whole events without anything notable: it is searched for a few words, and passes.
    """

    def __init__(self, *, hides_usage: bool, keeps: bool) -> None:
        self._hides_usage, self._keeps = hides_usage, keeps
        self._rest = b""
        self.kept: list[bytes] = []
        self.count = Count()
        self.pieces = 0
        """Events so far: about as many tokens, until the endpoint's count is known."""
        self.done = False
        """Whether the last event was there."""
        self.failure: bytes | None = None
        """The event in which the endpoint gives up, which was not passed on."""

    def feed(self, data: bytes) -> bytes:
        """What of it the client gets."""
        if self._rest or not data.endswith(b"\n\n") or any(word in data for word in _NOTABLE):
            return self._read_events(data)
        self.pieces += data.count(_DATA)
        if self._keeps:
            self.kept.append(data)
        return data

    def _read_events(self, data: bytes) -> bytes:
        data, start, passed = self._rest + data, 0, []
        for end in _END.finditer(data):
            event, start = data[start : end.end()], end.end()
            if self.failure is None and self._passes(event):
                passed.append(event)
        self._rest = data[start:]
        out = b"".join(passed)
        if self._keeps:
            self.kept.append(out)
        return out

    def _passes(self, event: bytes) -> bool:
        payload = event_payload(event)
        if payload == b"[DONE]":
            self.done = True
            return True
        self.pieces += bool(payload)
        seen = _read(payload)
        if seen.error is not None or seen.object == "error":
            self.failure = event
            return False
        self.count.note(seen)
        return not (self._hides_usage and seen.usage is not None and seen.choices == [])


def event_payload(event: bytes) -> bytes:
    lines = (line for line in event.splitlines() if line.startswith(_DATA))
    return b"".join(line[len(_DATA) :].strip() for line in lines)


def _read(payload: bytes) -> _Seen:
    """What cannot be read tells nothing: it is not for us."""
    try:
        return _seen_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Seen()


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a client has got of an answer. `head`: the fields that all its events share. `whole`: nothing is
    missing but the end of the stream. `plain`: it is text and nothing else, so that it can be continued."""

    head: Mapping[str, Any]
    text: str
    whole: bool
    plain: bool


_HEAD = ("id", "object", "created", "model", "system_fingerprint")


def said(kept: list[bytes]) -> Said:
    """Read what has passed. Only done when an answer breaks off."""
    head: dict[str, Any] = {}
    texts, whole, plain = [], False, True
    for event in _END.split(b"".join(kept)):
        tree = _tree(event_payload(event))
        head = head or {name: tree[name] for name in _HEAD if name in tree}
        for choice in tree.get("choices") or ():
            text = _plain_text(choice)
            plain = plain and text is not None
            texts.append(text or "")
            whole = whole or choice.get("finish_reason") is not None
    return Said(head=head, text="".join(texts), whole=whole, plain=plain)


def _tree(payload: bytes) -> dict[str, Any]:
    try:
        tree = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _plain_text(choice: dict[str, Any]) -> str | None:
    """None where the piece has more than text."""
    if choice.get("index", 0) != 0 or choice.get("logprobs"):
        return None
    if "text" in choice:
        return str(choice["text"])
    delta = choice.get("delta") or {}
    if any(value for name, value in delta.items() if name not in ("role", "content")):
        return None
    return delta.get("content") or ""


_UNCONTINUED = (
    *("tools", "functions", "response_format", "logprobs", "top_logprobs", "echo", "suffix"),
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
"""Of these the rest of an answer is not what another endpoint makes of its beginning."""


def may_continue(path: str, asked: Asked, body: bytes) -> bool:
    """Whether another endpoint could go on with the answer."""
    if not asked.stream or path not in (CHAT, COMPLETIONS) or (asked.n or 1) != 1:
        return False
    fields = _fields_decoder.decode(body)
    if any(
        bytes(fields.get(name, b"null")) not in (b"null", b"[]", b"false", b'""') for name in _UNCONTINUED
    ):
        return False
    return path == CHAT or bytes(fields.get("prompt", b"")).startswith(b'"')


def rest_body(path: str, asked: Asked, body: bytes, text: str, tokens: int) -> bytes:
    """The request for what is left when `text` of so many tokens is there already. A chat's last message is
    its beginning then, which vLLM's server continues instead of answering it."""
    fields: dict[str, Any] = dict(_fields_decoder.decode(body))
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(limit := getattr(asked, name), int):
            fields[name] = max(1, limit - tokens)
    if path == COMPLETIONS:
        fields["prompt"] = msgspec.json.decode(fields["prompt"]) + text
    elif text:
        messages = msgspec.json.decode(fields["messages"])
        fields["messages"] = [*messages, {"role": "assistant", "content": text}]
        fields["continue_final_message"], fields["add_generation_prompt"] = True, False
    return _encoder.encode(fields)


def tokenize_body(model: str, text: str) -> bytes:
    """Of a request that counts the tokens of `text`, which is not the beginning of anything."""
    return _encoder.encode({"model": model, "prompt": text, "add_special_tokens": False})


def tokens_counted(body: bytes, guess: int) -> int:
    """`guess` where the endpoint does not say."""
    count = _tree(body).get("count")
    return count if isinstance(count, int) else guess


class Rest:
    """The rest of an answer, as if the first endpoint had gone on: its events get that one's head, and its
    usage counts what was `said` in `tokens` to the answer and not to the prompt."""

    def __init__(self, said: Said, tokens: int) -> None:
        self._said, self._tokens = said, tokens

    def rewritten(self, passed: bytes) -> bytes:
        """Of whole events."""
        return b"".join(self._event(event_payload(event)) for event in _END.split(passed))

    def _event(self, payload: bytes) -> bytes:
        tree = _tree(payload)
        if not tree:
            return b"data: " + payload + b"\n\n" if payload else b""
        tree.update(self._said.head)
        for choice in tree.get("choices") or ():
            if isinstance(delta := choice.get("delta"), dict):
                delta.pop("role", None)
        if isinstance(usage := tree.get("usage"), dict):
            usage["prompt_tokens"] = usage.get("prompt_tokens", 0) - self._tokens
            usage["completion_tokens"] = usage.get("completion_tokens", 0) + self._tokens
        return b"data: " + _encoder.encode(tree) + b"\n\n"


def ending(said: Said, path: str, reason: str | None, usage: tuple[int, int] | None) -> bytes:
    """The last events of an answer that needs nothing more. `reason`: its finish reason, where the client
    does not have it yet; `usage`: where the client asked for it."""
    events = []
    if reason is not None:
        piece: dict[str, Any] = {"text": ""} if path == COMPLETIONS else {"delta": {}}
        events.append({**said.head, "choices": [{"index": 0, **piece, "finish_reason": reason}]})
    if usage is not None:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        events.append({**said.head, "choices": [], "usage": counts})
    return b"".join(b"data: " + _encoder.encode(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"
