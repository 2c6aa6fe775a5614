"""Requests of every format, answered by Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec

from sovereign_ai.errors import InvalidRequest, ModelNotFound
from sovereign_ai.gateway.conversation import Conversation, Room, assignment
from sovereign_ai.gateway.exchange import Exchange
from sovereign_ai.gateway.fallback import Fallback
from sovereign_ai.gateway.generation import Generator
from sovereign_ai.gateway.journal import Clock
from sovereign_ai.gateway.templates import PromptBuilder
from sovereign_ai.gateway.upstream import TritonClient
from sovereign_ai.gateway.wire import (
    anthropic,
    formats,
    parsing,
    requests,
    rerank,
    responses,
    responses_api,
    tokens,
    triton,
)
from sovereign_ai.gateway.wire.messages import for_template
from sovereign_ai.spec import Route, Task

LONG_TEXT_CHARACTERS = 8192
"""From here on tokens are counted in a thread: it takes milliseconds in which all streams would stop."""

_PLACE = {"chat": "/v1/chat/completions or /v1/completions", "embed": "/v1/embeddings or /v1/rerank"}


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
        fallback: Fallback,
        *,
        clock: Clock,
        monotonic: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._served, self._client, self._fallback = served, client, fallback
        self._clock, self._new_id = clock, new_id
        self._generator = Generator(client, monotonic)

    @property
    def answers(self) -> Mapping[str, Callable[[Exchange, bytes], Awaitable[None]]]:
        """Path → who answers a POST there."""
        return {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/embeddings": self.embed,
            "/v1/rerank": self.rerank,
            "/v1/responses": self.respond,
            "/v1/messages": self.message,
            "/v1/messages/count_tokens": self.count_tokens,
            "/v1/tokenize": self.tokenize,
            "/v1/detokenize": self.detokenize,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
        }

    async def chat(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_chat(body)

        async def ask(served: Served) -> None:
            format_ = formats.ChatFormat(
                self._head("chatcmpl-", served),
                include_usage=request.include_usage,
                choices=request.n,
                top=request.top,
                short_ids=served.prompts.form == "mistral",
            )
            await self._converse(exchange, served, Conversation(request), lambda _: format_)

        await self._fallback.ask(self._find(exchange, request.model, "chat"), ask)

    async def respond(self, exchange: Exchange, body: bytes) -> None:
        request = responses_api.parse_responses(body)
        asked = self._find(exchange, request.model, "chat")
        conversation = Conversation(request.as_chat(), param="input", structure_param="text.format")

        async def ask(served: Served) -> None:
            format_ = responses_api.ResponsesFormat(self._head("resp_", served), request.echoed())
            await self._converse(exchange, served, conversation, lambda _: format_)

        await self._fallback.ask(asked, ask)

    async def message(self, exchange: Exchange, body: bytes) -> None:
        request = anthropic.parse_messages(body)
        asked = self._find(exchange, request.model, "chat")
        conversation = Conversation(
            request.as_chat(), beginning=request.beginning, stops=request.stop_sequences or ()
        )

        async def ask(served: Served) -> None:
            make = partial(anthropic.AnthropicFormat, self._head("msg_", served))
            await self._converse(exchange, served, conversation, make)

        await self._fallback.ask(asked, ask)

    async def count_tokens(self, exchange: Exchange, body: bytes) -> None:
        request = anthropic.parse_count(body)
        served = self._find(exchange, request.model, "chat")
        text = Conversation(request.as_chat(), beginning=request.beginning).prompt(served.prompts)
        await exchange.answer(200, anthropic.count_body(await _count(served, text)))

    async def complete(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_completion(body)

        async def ask(served: Served) -> None:
            format_ = formats.CompletionFormat(
                self._head("cmpl-", served),
                include_usage=request.include_usage,
                choices=request.n,
                top=request.top,
            )
            room = await self._room(exchange, request, served, request.text, "prompt")
            work = assignment(request, request.text, room, format_)
            await self._generator.run(exchange, served.route, work)

        await self._fallback.ask(self._find(exchange, request.model, "chat"), ask)

    async def embed(self, exchange: Exchange, body: bytes) -> None:
        request = requests.parse_embeddings(body)

        async def ask(served: Served) -> None:
            await _check_texts(served, request.texts, "input")
            found = await self._embeddings(exchange, served, request.texts, request.dimensions)
            counted, model = exchange.record.prompt_tokens, served.route.model
            await exchange.answer(
                200, responses.embeddings_body(found, request.encoding_format, model, counted)
            )

        await self._fallback.ask(self._find(exchange, request.model, "embed"), ask)

    async def rerank(self, exchange: Exchange, body: bytes) -> None:
        request = parsing.parse(body, rerank.RerankRequest)
        texts = request.texts

        async def ask(served: Served) -> None:
            await _check_texts(served, [request.query], "query")
            await _check_texts(served, texts, "documents")
            query, *documents = await self._embeddings(exchange, served, [request.query, *texts])
            counted, id_ = exchange.record.prompt_tokens, "rerank-" + self._new_id()
            answered = msgspec.structs.replace(request, model=served.route.model)
            await exchange.answer(200, rerank.rerank_body(answered, id_, query, documents, counted))

        await self._fallback.ask(self._find(exchange, request.model, "embed"), ask)

    async def tokenize(self, exchange: Exchange, body: bytes) -> None:
        request = tokens.parse_tokenize(body)
        served = self._find(exchange, request.model)
        found = await asyncio.to_thread(_tokens, request, served.prompts)
        texts = served.prompts.token_texts(found) if request.return_token_strs else None
        await exchange.answer(200, tokens.tokenize_body(found, texts, served.route.context))

    async def detokenize(self, exchange: Exchange, body: bytes) -> None:
        request = parsing.parse(body, tokens.DetokenizeRequest)
        served = self._find(exchange, request.model)
        tokens.check_tokens(request.tokens, served.prompts.vocabulary)
        text = await asyncio.to_thread(served.prompts.text, request.tokens)
        await exchange.answer(200, tokens.detokenize_body(text))

    async def _converse(
        self,
        exchange: Exchange,
        served: Served,
        conversation: Conversation,
        make: Callable[[int], formats.Format],
    ) -> None:
        """Generate the assistant's next message. `make`: from the prompt's tokens the answer's format."""
        text = conversation.prompt(served.prompts)
        request = conversation.request
        room = await self._room(exchange, request, served, text, conversation.param)
        format_ = make(exchange.record.prompt_tokens)
        work = conversation.shaped(assignment(request, text, room, format_), served.prompts.form)
        await self._generator.run(exchange, served.route, work)

    async def _room(
        self,
        exchange: Exchange,
        request: requests.Generation,
        served: Served,
        text: str,
        param: str,
    ) -> Room:
        """Raises InvalidRequest unless prompt and answer fit."""
        requests.check_token_ids(request, served.prompts.vocabulary)
        prompt_tokens = await _count(served, text)
        if prompt_tokens == 0:
            raise InvalidRequest("The prompt is empty", param=param, code="invalid_value")
        exchange.record.prompt_tokens = prompt_tokens
        answer = requests.answer_budget(
            prompt_tokens, request.answer_limit, served.route.context, param=param
        )
        return Room(prompt_tokens + (request.answer_limit or 1), answer)

    async def _embeddings(
        self,
        exchange: Exchange,
        served: Served,
        texts: Sequence[str],
        dimensions: int | None = None,
    ) -> list[bytes]:
        """One vector per text. Raises ApiError."""
        rows: list[bytes] = []
        for start in range(0, len(texts), triton.MAX_INFER_TEXTS):
            found = await self._client.embed(
                served.route.model, texts[start : start + triton.MAX_INFER_TEXTS]
            )
            _check_dimensions(dimensions, found.dimensions)
            rows += found.rows()
            exchange.record.prompt_tokens += sum(found.tokens)
        return rows

    def _find(self, exchange: Exchange, model: str, task: Task | None = None) -> Served:
        """`task`: what the model must be for. Raises ModelNotFound or InvalidRequest."""
        served = self._served.get(model)
        if served is None:
            raise no_such_model(model)
        exchange.record.model = model
        if task not in (None, served.route.task):
            raise InvalidRequest(
                f"The model `{model}` is served at {_PLACE[served.route.task]} only",
                param="model",
                code="invalid_value",
            )
        return served

    def _head(self, prefix: str, served: Served) -> formats.Head:
        return formats.Head(prefix + self._new_id(), int(self._clock()), served.route.model)


def no_such_model(model: str) -> ModelNotFound:
    return ModelNotFound(f"The model `{model[:200]}` does not exist", param="model", code="model_not_found")


def _tokens(request: tokens.TokenizeRequest, prompts: PromptBuilder) -> list[int]:
    if request.prompt is not None:
        return prompts.tokens(request.prompt, special=request.add_special_tokens is not False)
    text = prompts.render(
        for_template(request.messages or []),
        [tool.function.for_template() for tool in request.tools or ()] or None,
        begin_answer=request.add_generation_prompt,
    )
    # the beginning that the tokenizer adds was taken off by `render`, so that it is not there twice
    return prompts.tokens(text, special=request.add_special_tokens is not False)


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
