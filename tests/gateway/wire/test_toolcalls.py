from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway.wire.toolcalls import (
    Arguments,
    Called,
    Form,
    Piece,
    Reader,
    Said,
    form_of,
    reader_for,
)
from sovereign_ai.gateway.wire.tools import Calling, Function

FUNCTIONS = (Function(name="look"), Function(name="go"))
Read = tuple[str, list[tuple[str, str]]]

AUTO = Calling(FUNCTIONS, "auto", False, True)
ONE = Calling(FUNCTIONS, "auto", False, False)
REQUIRED = Calling(FUNCTIONS, "required", False, True)
NAMED = Calling(FUNCTIONS, "look", True, True)


def gathered(pieces: Sequence[Piece]) -> Read:
    """What was said, and name and arguments of each call. Calls and their numbers must fit each other."""
    text = ""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, Said):
            text += piece.text
        elif isinstance(piece, Called):
            assert piece.number == len(calls)
            calls.append((piece.name, ""))
        else:
            assert piece.number == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    return text, calls


def read(reader: Reader, *chunks: str) -> Read:
    pieces = [piece for chunk in chunks for piece in reader.feed(chunk)]
    return gathered([*pieces, *reader.end()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("just words < and > marks", ("just words < and > marks", [])),
        ("  spaces around \n", ("  spaces around \n", [])),
        ('<tool_call>\n{"name": "look", "arguments": {"a": [1, "}"]}}\n</tool_call>',
         ("", [("look", '{"a": [1, "}"]}')])),
        ('I will look.\n<tool_call>{"name": "look", "arguments": {}}</tool_call>\n',
         ("I will look.", [("look", "{}")])),
        ('<tool_call>{"name": "look", "arguments": {}}</tool_call>\n'
         '<tool_call>{"arguments": {"x": 1}, "name": "go"}</tool_call>',
         ("", [("look", "{}"), ("go", '{"x": 1}')])),
        ('<tool_call>{"name": "look", "arguments": {}}<tool_call>{"name": "go", "arguments": {}}',
         ("", [("look", "{}"), ("go", "{}")])),
        ('<tool_call>{"id": 5, "name": "look", "arguments": "{\\"a\\": 1}", "x": null}</tool_call>',
         ("", [("look", '{"a": 1}')])),
        ('<tool_call>{"name": "look", "arguments": {}}</tool_call> and more',
         (" and more", [("look", "{}")])),
        ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
         ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', [])),
        ("<tool_call>look()</tool_call>", ("<tool_call>look()</tool_call>", [])),
        ('<tool_call>{"name": "loo', ('<tool_call>{"name": "loo', [])),
        ('<tool_call>{"name": "look", "argu', ("", [("look", "")])),
        ('<tool_call>{"name": "look", "arguments": {"a": "b', ("", [("look", '{"a": "b')])),
        ('<tool_call>{"name": "look", "arguments": {}}</tool', ("", [("look", "{}")])),
        ('<tool_call>{"name": "look", "arguments": {}, oops}</tool_call>', ("", [("look", "{}")])),
        ("<tool_call>{}</tool_call>", ("<tool_call>{}</tool_call>", [])),
        ('<tool_call>{"name": 5}</tool_call>', ('<tool_call>{"name": 5}</tool_call>', [])),
        ('<tool_call>{"name": "look", "arguments": 7}', ("", [("look", "7")])),
        ('<tool_call>{"name": "look", "arguments": nul }', ("", [("look", "nul")])),
        ('<tool_call>{"name" "look"}', ('<tool_call>{"name" "look"}', [])),
        ('<tool_call>{"name": , }', ('<tool_call>{"name": , }', [])),
        ('<tool_call>{"\\x": 1}', ('<tool_call>{"\\x": 1}', [])),
        ("<<tool_call", ("<<tool_call", [])),
    ],
)  # fmt: skip
def test_hermes(text: str, expected: Read) -> None:
    assert read(reader_for(AUTO, "hermes"), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", ("hello", [])),
        ('{"name": "look", "parameters": {"a": {}}}', ("", [("look", '{"a": {}}')])),
        ('\n<|python_tag|>{"name": "look", "parameters": {}}', ("", [("look", "{}")])),
        ('{"name": "look", "parameters": {}}; {"name": "go", "parameters": {}}',
         ("", [("look", "{}"), ("go", "{}")])),
        ('{"name": "Bob", "age": 5}', ('{"name": "Bob", "age": 5}', [])),
        ('{"a": 1} is JSON', ('{"a": 1} is JSON', [])),
        ('{"name": "look", "parameters": {}} thanks', (" thanks", [("look", "{}")])),
        ('{"name": "look", "parameters": {}}; no', ("; no", [("look", "{}")])),
        ('words {"name": "look"}', ('words {"name": "look"}', [])),
        ("<|python", ("<|python", [])),
        ("<|pity", ("<|pity", [])),
        (" ", (" ", [])),
    ],
)  # fmt: skip
def test_llama(text: str, expected: Read) -> None:
    assert read(reader_for(AUTO, "llama"), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello [x]", ("hello [x]", [])),
        ('[TOOL_CALLS] [{"name": "look", "arguments": {"a": 1}}, {"name": "go", "arguments": {}}]',
         ("", [("look", '{"a": 1}'), ("go", "{}")])),
        ('Now. [TOOL_CALLS][{"name": "look", "arguments": {}}] done', ("Now. done", [("look", "{}")])),
        ('[TOOL_CALLS]look[ARGS]{"a": "}"}[TOOL_CALLS]go{}', ("", [("look", '{"a": "}"}'), ("go", "{}")])),
        ('[TOOL_CALLS]look[CALL_ID]123456789[ARGS]{"a": 1', ("", [("look", '{"a": 1')])),
        ("[TOOL_CALLS]unknown[ARGS]{}", ("[TOOL_CALLS]unknown[ARGS]{}", [])),
        ("[TOOL_CALLS]loo", ("[TOOL_CALLS]loo", [])),
        ("[TOOL_CALLS] ", ("[TOOL_CALLS] ", [])),
        ("[TOOL_CALLS]" + "x" * 300, ("[TOOL_CALLS]" + "x" * 300, [])),
        ('[TOOL_CALLS] [{"name": "look", "arguments": {}}, 5]', (", 5]", [("look", "{}")])),
    ],
)  # fmt: skip
def test_mistral(text: str, expected: Read) -> None:
    assert read(reader_for(AUTO, "mistral"), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"name": "look", "parameters": {}},\n {"name": "go", "parameters": {"b": 2}}]',
         ("", [("look", "{}"), ("go", '{"b": 2}')])),
        (' [ {"parameters": {"a": [1]}, "name": "look"} ] ', ("", [("look", '{"a": [1]}')])),
        ('[{"name": "look", "parameters": {"a"', ("", [("look", '{"a"')])),
        ("[]", ("[]", [])),
        ("oops", ("oops", [])),
    ],
)  # fmt: skip
def test_calls_that_were_required(text: str, expected: Read) -> None:
    assert read(reader_for(REQUIRED, None), text) == expected


def test_a_call_that_was_named() -> None:
    assert read(reader_for(NAMED, None), '{"a"', ": 1}") == ("", [("look", '{"a": 1}')])
    assert read(reader_for(NAMED, None)) == ("", [("look", "")])


def test_one_call_and_no_more() -> None:
    two = '<tool_call>{"name": "look", "arguments": {}}</tool_call>' * 2
    assert read(reader_for(ONE, "hermes"), two) == ("", [("look", "{}")])
    assert read(reader_for(ONE, "mistral"), "[TOOL_CALLS]look{}[TOOL_CALLS]go{}") == ("", [("look", "{}")])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["look", "go"]), st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


def written(form: Form | None, calls: list[tuple[str, dict[str, object]]]) -> str:
    """As models of that form write calls."""
    word = "parameters" if form in ("llama", None) else "arguments"
    objects = [json.dumps({"name": name, word: arguments}) for name, arguments in calls]
    if form == "hermes":
        return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)
    if form == "llama":
        return "; ".join(objects)
    return ("[TOOL_CALLS] " if form == "mistral" else "") + f"[{', '.join(objects)}]"


@pytest.mark.parametrize("form", ["hermes", "llama", "mistral", None])
@given(calls=CALLS)
def test_what_models_write_is_read_and_arguments_pass_through_unchanged(
    form: Form | None, calls: list[tuple[str, dict[str, object]]]
) -> None:
    text, found = read(reader_for(AUTO if form else REQUIRED, form), written(form, calls))
    assert text == ""
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "look", ']
SOUP = st.lists(
    st.sampled_from([*MARKS, '"arguments": {"a": "\\""}}', '"parameters": [1]}', "look", ";", "{", "}", "[",
                     "]", ",", '"', "\\", " ", "\n", "<", "x"]),
    max_size=12,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("form", ["hermes", "llama", "mistral", None])
@given(text=SOUP, data=st.data())
def test_any_cutting_gives_the_same(form: Form | None, text: str, data: st.DataObject) -> None:
    """Whatever it is that the model writes."""
    calling = data.draw(st.sampled_from([AUTO, ONE] if form else [REQUIRED, NAMED]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(reader_for(calling, form), *chunks) == read(reader_for(calling, form), text)


@given(text=st.text(alphabet=st.characters(exclude_characters="<[{"), max_size=40))
def test_text_without_marks_is_passed_on(text: str) -> None:
    for form in ("hermes", "llama", "mistral"):
        assert read(reader_for(AUTO, form), text) == (text, [])


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    reader = reader_for(AUTO, "hermes")
    assert reader.feed("Well<") == [Said("Well")]
    assert reader.feed("b><tool_call>") == [Said("<b>")]
    assert reader.feed('{"name": "loo') == []
    assert reader.feed('k", "arguments": {"a') == [Called(0, "look"), Arguments(0, '{"a')]
    assert reader.feed('": 1}') == [Arguments(0, '": 1}')]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama"),
        ("""Respond in the format {"name": x, "parameters": y}""", "llama"),
        ("<tool_call><function=name>", None),
        ("{{ messages }}", None),
    ],
)
def test_the_form_is_told_by_the_template(template: str, form: Form | None) -> None:
    assert form_of(template) == form
