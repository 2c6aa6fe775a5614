"""OpenAI requests, answered by Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from sovereign_ai.errors import InvalidRequest, ModelNotFound
from sovereign_ai.gateway.continuation import Answer, Order
from sovereign_ai.gateway.exchange import Exchange
from sovereign_ai.gateway.journal import Clock
from sovereign_ai.gateway.templates import PromptBuilder
from sovereign_ai.gateway.upstream import TritonClient
from sovereign_ai.gateway.wire import requests, responses, triton
from sovereign_ai.spec import Route, Task

LONG_TEXT_CHARACTERS = 8192
"""From here on tokens are counted in a thread: it takes milliseconds in which all streams would stop."""

_PLACE = {"chat": "/v1/chat/completions or /v1/completions", "embed": "/v1/embeddings"}


class Served(msgspec.Struct, frozen=True):
    """A route, and the text side of its model."""

    route: Route
    prompts: PromptBuilder


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
        self._clock, self._monotonic, self._new_id = clock, monotonic, new_id

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
        text = served.prompts.render([message.for_template() for message in request.messages])
        await self._generate(exchange, request, served, text, responses.ChatFormat)

    async def complete(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_completion(body)
        served = self._find(exchange, request.model, "chat")
        await self._generate(exchange, request, served, request.text, responses.CompletionFormat)

    async def embed(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_embeddings(body)
        served = self._find(exchange, request.model, "embed")
        await _check_texts(served, request.texts)
        rows: list[bytes] = []
        for start in range(0, len(request.texts), triton.MAX_INFER_TEXTS):
            texts = request.texts[start : start + triton.MAX_INFER_TEXTS]
            found = await self._client.embed(request.model, texts)
            _check_dimensions(request.dimensions, found.dimensions)
            rows += found.rows()
            exchange.record.prompt_tokens += sum(found.tokens)
        tokens = exchange.record.prompt_tokens
        await exchange.answer(
            200, responses.embeddings_body(rows, request.encoding_format, request.model, tokens)
        )

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

    async def _generate(
        self,
        exchange: Exchange,
        request: requests.Generation,
        served: Served,
        text: str,
        format_: type[responses.Format],
    ) -> None:
        prompt_tokens = await _count(served, text)
        if prompt_tokens == 0:
            raise InvalidRequest("The prompt is empty", param=format_.prompt_param, code="invalid_value")
        budget = requests.answer_budget(
            prompt_tokens, request.answer_limit, served.route.context, param=format_.prompt_param
        )
        exchange.record.prompt_tokens = prompt_tokens
        head = responses.Head(format_.id_prefix + self._new_id(), int(self._clock()), request.model)
        format_of_answer = format_(head, include_usage=request.include_usage)
        order = Order(text, request.sampling(budget))
        needed = prompt_tokens + (request.answer_limit or 1)
        async with self._client.answer(served.route, order, tokens=needed) as stream:
            exchange.record.first_token = self._monotonic()
            if request.stream:
                await _relay(exchange, stream, format_of_answer, include_usage=request.include_usage)
            else:
                await _collect(exchange, stream, format_of_answer)


def no_such_model(model: str) -> ModelNotFound:
    return ModelNotFound(f"The model `{model[:200]}` does not exist", param="model", code="model_not_found")


async def _relay(
    exchange: Exchange, stream: Answer, format_: responses.Format, *, include_usage: bool
) -> None:
    """Pass the answer on as it comes: one write per network read."""
    out, reason = [format_.first()], None
    while reason is None:
        for event in await stream.read():
            _tally(exchange, event)
            if event.text_output:
                out.append(format_.text(event.text_output))
            reason = reason or triton.finish_reason(event)
        if reason is not None:
            out.append(format_.last(reason))
        await exchange.send_events(b"".join(out))
        out = []
    await stream.drain()
    usage = format_.usage(_usage(exchange)) if include_usage else b""
    await exchange.end_events(usage + responses.DONE)


async def _collect(exchange: Exchange, stream: Answer, format_: responses.Format) -> None:
    texts: list[str] = []
    reason = None
    while reason is None:
        for event in await stream.read():
            _tally(exchange, event)
            texts.append(event.text_output)
            reason = reason or triton.finish_reason(event)
    await stream.drain()
    await exchange.answer(200, format_.body("".join(texts), reason, _usage(exchange)))


def _tally(exchange: Exchange, event: triton.Event) -> None:
    record = exchange.record
    record.completion_tokens += event.num_output_tokens
    # the engine's own count, once it is known
    record.prompt_tokens = event.num_input_tokens or record.prompt_tokens


def _usage(exchange: Exchange) -> responses.Usage:
    return responses.Usage(exchange.record.prompt_tokens, exchange.record.completion_tokens)


async def _count(served: Served, text: str) -> int:
    if len(text) < LONG_TEXT_CHARACTERS:
        return served.prompts.count(text)
    return await asyncio.to_thread(served.prompts.count, text)


async def _check_texts(served: Served, texts: Sequence[str]) -> None:
    if sum(map(len, texts)) < LONG_TEXT_CHARACTERS:
        counts = served.prompts.count_each(texts)
    else:
        counts = await asyncio.to_thread(served.prompts.count_each, texts)
    requests.check_embedding_lengths(counts, served.route.context)


def _check_dimensions(wanted: int | None, actual: int) -> None:
    if wanted not in (None, actual):
        raise InvalidRequest(
            f"This model's embeddings have {actual} dimensions; other sizes are not supported",
            param="dimensions",
            code="unsupported_parameter",
        )
