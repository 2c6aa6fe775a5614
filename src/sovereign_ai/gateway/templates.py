"""The text side of a model: its chat template and its tokenizer, read from the model's folder.

Templates are rendered as transformers renders them, because that is what the model was trained with: the same
sandbox, the same block trimming, the same extra functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from sovereign_ai.errors import InvalidRequest, UnsupportedModel
from sovereign_ai.gateway.wire.parsing import MESSAGE_LIMIT
from sovereign_ai.gateway.wire.toolcalls import Form, form_of

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"
TOKENIZER_FILE = "tokenizer.json"

_TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError)
"""What a template, which is foreign code, can raise on messages that its author did not think of."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here its content is plain content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        # a scope, because in transformers the block is a call: what is set inside stays inside
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ToolTemplate(msgspec.Struct, frozen=True):
    """A template that knows tools, and the form in which its model calls them."""

    template: jinja2.Template
    form: Form


class PromptBuilder:
    """Messages → the prompt that the engine gets, and texts → their tokens.

    `tools`: the template for conversations with tools, None where the model has none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: jinja2.Template | None,
        tokens: dict[str, str],
        *,
        tools: ToolTemplate | None = None,
    ) -> None:
        # both would falsify counts, and some tokenizer files carry them
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self._tokens = tokens
        self._tools = tools
        self._doubled_bos = _doubled_bos(tokenizer, tokens.get("bos_token"))

    @property
    def form(self) -> Form | None:
        """How the model writes calls of tools; None where it knows none."""
        return None if self._tools is None else self._tools.form

    @property
    def vocabulary(self) -> int:
        """Tokens there are, special ones included: their ids begin at 0."""
        return self._tokenizer.get_vocab_size()

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        param: str = "messages",
        begin_answer: bool = True,
    ) -> str:
        """The prompt, ending where the assistant's answer begins. `param`: the request's field with messages.

        Raises InvalidRequest when the model has no chat template, or none that knows tools, or the template
        refuses the messages.
        """
        template = self._template_for(tools)
        try:
            # transformers defines tools and documents even when there are none, and templates ask for that
            text = template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=begin_answer,
                **self._tokens,
            )
        except _TEMPLATE_FAULTS as error:
            raise InvalidRequest(
                f"The model's chat template refused these messages: {error}"[:MESSAGE_LIMIT],
                param=param,
                code="invalid_value",
            ) from error
        return text.removeprefix(self._doubled_bos)

    def _template_for(self, tools: Sequence[dict[str, Any]] | None) -> jinja2.Template:
        if self._template is None:
            raise InvalidRequest("This model has no chat template: use /v1/completions", param="model")
        if not tools:
            return self._template
        if self._tools is None:
            raise InvalidRequest(
                "This model's chat template knows no tools: leave `tools` out, or choose another model",
                param="tools",
                code="unsupported_parameter",
            )
        return self._tools.template

    def count(self, text: str) -> int:
        """Tokens of `text` as the engine will count them, special tokens included."""
        return len(self._tokenizer.encode(text))

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """`special`: with those that the model expects around every text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """As the vocabulary has them."""
        return [self._tokenizer.id_to_token(token) or "" for token in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        """Special tokens are written out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def count_each(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]


def load_prompt_builder(folder: Path, *, now: Callable[[], datetime] = datetime.now) -> PromptBuilder:
    """Read tokenizer and template of the model in `folder`. `now` is what `strftime_now` tells templates.

    Raises UnsupportedModel when there is no usable tokenizer or the template is broken.
    """
    config = _read_json(folder / CONFIG_FILE)
    tokens = _special_tokens({**_read_json(folder / TOKENS_FILE), **config})
    environment = _environment(now)
    sources = _template_sources(folder, config)
    template = _read_template(folder, environment, sources.get("default"))
    tools = sources.get("tool_use") or sources.get("default")
    return PromptBuilder(
        _read_tokenizer(folder / TOKENIZER_FILE),
        template,
        tokens,
        tools=None if template is None else _read_tool_template(folder, environment, tools),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnsupportedModel(f"{path} is not valid JSON: {error}") from error


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UnsupportedModel(
            f"{path.parent} has no {path.name}", "only models with a fast tokenizer can be served"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception for every fault
        raise UnsupportedModel(f"{path} is not a usable tokenizer: {error}") from error


def _read_template(
    folder: Path, environment: ImmutableSandboxedEnvironment, source: str | None
) -> jinja2.Template | None:
    if source is None:
        return None
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UnsupportedModel(
            f"{folder}: broken chat template, line {error.lineno}: {error.message}"
        ) from error


def _read_tool_template(
    folder: Path, environment: ImmutableSandboxedEnvironment, source: str | None
) -> ToolTemplate | None:
    """A template knows tools if it uses the variable, and the marks in it tell the form of calls."""
    template = _read_template(folder, environment, source)
    if source is None or template is None:
        return None
    if "tools" not in jinja2.meta.find_undeclared_variables(environment.parse(source)):
        return None
    form = form_of(source)
    return None if form is None else ToolTemplate(template, form)


def _template_sources(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """By name: `default` is for chat, `tool_use` for chat with tools. The file beside the config wins."""
    if (path := folder / TEMPLATE_FILE).is_file():
        return {"default": path.read_text(encoding="utf-8")}
    given = config.get("chat_template")
    if isinstance(given, list):
        return {entry["name"]: entry["template"] for entry in given}
    return {} if given is None else {"default": given}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and its like: a text, or an object whose `content` is the text."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _doubled_bos(tokenizer: Tokenizer, bos: str | None) -> str:
    """The beginning-of-sequence text to take off a rendered prompt, or "".

    The engine tokenizes with special tokens added: where that adds it, one in the text would be a second.
    """
    added = tokenizer.encode("").ids
    return bos if bos is not None and added and added[0] == tokenizer.token_to_id(bos) else ""


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes for HTML, which a prompt is not."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
