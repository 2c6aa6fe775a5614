from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from sovereign_ai.errors import InvalidRequest, UnsupportedModel
from sovereign_ai.gateway.templates import PromptBuilder, load_prompt_builder

USER = {"role": "user", "content": "hello <b>"}


def save_tokenizer(folder: Path, *, adds_bos: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "<s>": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    if adds_bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def load(folder: Path, template: Any, *, adds_bos: bool = False, **config: Any) -> PromptBuilder:
    save_tokenizer(folder, adds_bos=adds_bos)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **config}))
    return load_prompt_builder(folder, now=lambda: datetime(2024, 12, 24))


def render(folder: Path, template: Any, *messages: dict[str, str], **config: Any) -> str:
    return load(folder, template, **config).render(messages or [USER])


def test_messages_generation_prompt_and_special_tokens(tmp_path: Path) -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    assert render(tmp_path, source, **tokens) == "<s>user:hello <b></s>assistant:"


def test_blocks_are_trimmed_as_in_training(tmp_path: Path) -> None:
    assert render(tmp_path, "a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hello <b>"}'),
        ("{{ {'b': 'é', 'a': 1} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 1,\n "b": "é"\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "24 Dec 2024"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% generation %}{% set x = 1 %}in{{ x }}{% endgeneration %}{{ x is defined }}", "in1False"),
        ("{{ tools is defined }} {{ documents is none }}", "True True"),
    ],
)
def test_what_templates_may_use(tmp_path: Path, source: str, expected: str) -> None:
    assert render(tmp_path, source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[7]['content'].nothing }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_a_template_that_refuses_refuses_the_request(tmp_path: Path, source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template") as caught:
        render(tmp_path, source)
    assert caught.value.param == "messages"


def test_the_templates_own_words_reach_the_client(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render(tmp_path, "{{ raise_exception('roles must alternate') }}")


def test_where_the_template_may_be(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    assert render(tmp_path, named) == "default"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert render(tmp_path, "from the config") == "from the file"


def test_special_tokens_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<old>", "eos_token": "</s>"}')
    assert render(tmp_path, "{{ bos_token }}{{ eos_token }}", bos_token="<s>") == "<s></s>"


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    builder = load_prompt_builder(tmp_path)
    assert builder.count("a b") == 2
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        builder.render([USER])


def test_a_beginning_that_the_tokenizer_adds_is_not_doubled(tmp_path: Path) -> None:
    builder = load(tmp_path, "<s> <s> {{ messages[0].content }}", adds_bos=True, bos_token="<s>")
    assert builder.render([USER]) == " <s> hello <b>"
    assert builder.count(builder.render([USER])) == 4


def test_a_beginning_that_only_the_template_adds_stays(tmp_path: Path) -> None:
    assert render(tmp_path, "<s>x", bos_token="<s>") == "<s>x"


def test_counts_ignore_padding_and_truncation(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    builder = load_prompt_builder(tmp_path)
    assert builder.count("a b c d e f") == 6
    assert builder.count_each(["a", "a b c d e"]) == [1, 5]


def test_a_model_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        load_prompt_builder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="usable"):
        load_prompt_builder(tmp_path)
    with pytest.raises(UnsupportedModel, match="line 2"):
        load(tmp_path, "a\n{% if %}")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match="JSON"):
        load_prompt_builder(tmp_path)


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def test_a_template_that_knows_tools(tmp_path: Path) -> None:
    source = "{% if tools %}<tool_call>{{ tools[0].function.name }}{% endif %}{{ messages[0].content }}"
    builder = load(tmp_path, source)
    assert builder.form == "hermes"
    assert builder.render([USER], TOOLS) == "<tool_call>lookhello <b>"
    assert builder.render([USER]) == "hello <b>"


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}<tool_call>", "{{ tools }} in words of its own"]
)
def test_a_template_that_knows_none(tmp_path: Path, source: str) -> None:
    builder = load(tmp_path, source)
    assert builder.form is None
    with pytest.raises(InvalidRequest) as caught:
        builder.render([USER], TOOLS)
    assert caught.value.param == "tools"


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    named = [
        {"name": "tool_use", "template": "{{ tools[0].function.name }}[TOOL_CALLS]"},
        {"name": "default", "template": "default"},
    ]
    builder = load(tmp_path, named)
    assert builder.form == "mistral"
    assert builder.render([USER], TOOLS) == "look[TOOL_CALLS]"
    assert builder.render([USER]) == "default"


def test_tokens_and_back(tmp_path: Path) -> None:
    builder = load(tmp_path, "x", adds_bos=True)
    assert builder.vocabulary == 2
    assert builder.tokens("<s> word") == [1, 1, 0]
    assert builder.tokens("<s> word", special=False) == [1, 0]
    assert builder.text([1, 0]) == "<s> [UNK]"
    assert builder.token_texts([1, 0, 99]) == ["<s>", "[UNK]", ""]
