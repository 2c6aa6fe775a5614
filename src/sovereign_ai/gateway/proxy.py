"""Requests of every format, answered by Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from sovereign_ai.errors import InvalidRequest, ModelNotFound
from sovereign_ai.gateway.exchange import Exchange
from sovereign_ai.gateway.generation import Assignment, Generator
from sovereign_ai.gateway.journal import Clock
from sovereign_ai.gateway.templates import PromptBuilder
from sovereign_ai.gateway.upstream import TritonClient
from sovereign_ai.gateway.wire import formats, requests, responses, triton
from sovereign_ai.gateway.wire.choices import Reading
from sovereign_ai.gateway.wire.messages import for_template
from sovereign_ai.gateway.wire.toolcalls import Reader, reader_for
from sovereign_ai.spec import Route, Task

LONG_TEXT_CHARACTERS = 8192
"""From here on tokens are counted in a thread: it takes milliseconds in which all streams would stop."""

_PLACE = {"chat": "/v1/chat/completions or /v1/completions", "embed": "/v1/embeddings or /v1/rerank"}


class Served(msgspec.Struct, frozen=True):
    """A route, and the text side of its model."""

    route: Route
    prompts: PromptBuilder


class _Room(msgspec.Struct, frozen=True):
    """Tokens: `needed` of a context at least, `answer` at most."""

    needed: int
    answer: int


class Proxy:
    """Answers the requests that reach a model.

    `clock` gives unix seconds for `created`, `monotonic` the time that durations are measured with, `new_id`
    an unused text for the answer's id.
    """

    def __init__(
        self,
        served: Mapping[str, Served],
        client: TritonClient,
        *,
        clock: Clock,
        monotonic: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._served, self._client = served, client
        self._clock, self._new_id = clock, new_id
        self._generator = Generator(client, monotonic)

    @property
    def answers(self) -> Mapping[str, Callable[[Exchange, bytes], Awaitable[None]]]:
        """Path → who answers a POST there."""
        return {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/embeddings": self.embed,
        }

    async def chat(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_chat(body)
        served = self._find(exchange, request.model, "chat")
        format_ = formats.ChatFormat(
            self._head("chatcmpl-", request.model),
            include_usage=request.include_usage,
            choices=request.n,
            top=request.top,
            short_ids=served.prompts.form == "mistral",
        )
        await self._converse(exchange, request, served, format_)

    async def complete(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_completion(body)
        served = self._find(exchange, request.model, "chat")
        format_ = formats.CompletionFormat(
            self._head("cmpl-", request.model),
            include_usage=request.include_usage,
            choices=request.n,
            top=request.top,
        )
        room = await self._room(exchange, request, served, request.text, format_)
        await self._generator.run(exchange, served.route, _assignment(request, request.text, room, format_))

    async def embed(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_embeddings(body)
        served = self._find(exchange, request.model, "embed")
        found = await self._embeddings(exchange, served, request.texts, request.dimensions)
        tokens = exchange.record.prompt_tokens
        await exchange.answer(
            200, responses.embeddings_body(found, request.encoding_format, request.model, tokens)
        )

    async def _converse(
        self,
        exchange: Exchange,
        request: requests.ChatRequest,
        served: Served,
        format_: formats.Format,
    ) -> None:
        """Generate the assistant's next message."""
        calls = request.calling
        text = served.prompts.render(
            for_template(request.messages),
            None if calls is None else calls.for_template(),
            param=format_.prompt_param,
        )
        room = await self._room(exchange, request, served, text, format_)
        work = _assignment(request, text, room, format_)
        if (structure := request.structure) is not None:
            work = _structured(work, structure, "response_format" if calls is None else "tool_choice")
        if calls is not None:
            form = served.prompts.form
            reading = partial(_reading, partial(reader_for, calls, form))
            work = msgspec.structs.replace(work, reading=reading)
            if form == "mistral":
                work = _with_sampling(work, skip_special_tokens=False)  # its mark is one
        await self._generator.run(exchange, served.route, work)

    async def _room(
        self,
        exchange: Exchange,
        request: requests.Generation,
        served: Served,
        text: str,
        format_: formats.Format,
    ) -> _Room:
        """Raises InvalidRequest unless prompt and answer fit."""
        requests.check_token_ids(request, served.prompts.vocabulary)
        prompt_tokens = await _count(served, text)
        if prompt_tokens == 0:
            raise InvalidRequest("The prompt is empty", param=format_.prompt_param, code="invalid_value")
        exchange.record.prompt_tokens = prompt_tokens
        answer = requests.answer_budget(
            prompt_tokens, request.answer_limit, served.route.context, param=format_.prompt_param
        )
        return _Room(prompt_tokens + (request.answer_limit or 1), answer)

    async def _embeddings(
        self,
        exchange: Exchange,
        served: Served,
        texts: Sequence[str],
        dimensions: int | None = None,
        *,
        name: str = "input",
    ) -> list[bytes]:
        """One vector per text. `name`: of the request's field with texts. Raises ApiError."""
        await _check_texts(served, texts, name)
        rows: list[bytes] = []
        for start in range(0, len(texts), triton.MAX_INFER_TEXTS):
            found = await self._client.embed(
                served.route.model, texts[start : start + triton.MAX_INFER_TEXTS]
            )
            _check_dimensions(dimensions, found.dimensions)
            rows += found.rows()
            exchange.record.prompt_tokens += sum(found.tokens)
        return rows

    def _find(self, exchange: Exchange, model: str, task: Task) -> Served:
        served = self._served.get(model)
        if served is None:
            raise no_such_model(model)
        exchange.record.model = model
        if served.route.task != task:
            raise InvalidRequest(
                f"The model `{model}` is served at {_PLACE[served.route.task]} only",
                param="model",
                code="invalid_value",
            )
        return served

    def _head(self, prefix: str, model: str) -> formats.Head:
        return formats.Head(prefix + self._new_id(), int(self._clock()), model)


def no_such_model(model: str) -> ModelNotFound:
    return ModelNotFound(f"The model `{model[:200]}` does not exist", param="model", code="model_not_found")


def _assignment(request: requests.Generation, text: str, room: _Room, format_: formats.Format) -> Assignment:
    sampling = [request.sampling(room.answer, choice) for choice in range(request.n)]
    return Assignment(
        text=text,
        sampling=sampling,
        tokens=room.needed,
        stream=request.stream,
        format=format_,
        scored=request.top is not None,
        fields={"logit_bias": "logit_bias"} if "logit_bias" in sampling[0] else {},
    )


def _with_sampling(work: Assignment, **parameters: Any) -> Assignment:
    return msgspec.structs.replace(work, sampling=[{**one, **parameters} for one in work.sampling])


def _structured(work: Assignment, structure: dict[str, Any], field: str) -> Assignment:
    """`field`: of the request, which asks for the structure. Sent as JSON in a text, as NVIDIA's backend
    wants it."""
    made = _with_sampling(work, structured_outputs=formats.encode(structure).decode())
    return msgspec.structs.replace(made, fields={**made.fields, "structured_outputs": field})


def _reading(make: Callable[[], Reader]) -> Reading:
    return Reading(make())


async def _count(served: Served, text: str) -> int:
    if len(text) < LONG_TEXT_CHARACTERS:
        return served.prompts.count(text)
    return await asyncio.to_thread(served.prompts.count, text)


async def _check_texts(served: Served, texts: Sequence[str], name: str) -> None:
    if sum(map(len, texts)) < LONG_TEXT_CHARACTERS:
        counts = served.prompts.count_each(texts)
    else:
        counts = await asyncio.to_thread(served.prompts.count_each, texts)
    requests.check_embedding_lengths(counts, served.route.context, name)


def _check_dimensions(wanted: int | None, actual: int) -> None:
    if wanted not in (None, actual):
        raise InvalidRequest(
            f"This model's embeddings have {actual} dimensions; other sizes are not supported",
            param="dimensions",
            code="unsupported_parameter",
        )
