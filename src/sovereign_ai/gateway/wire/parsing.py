"""Bodies of requests → validated structs, strictly.

The rule: a field either has its effect, or has a value that means "no effect", or the request is refused
with the field's name. Nothing is dropped in silence. Every refusal is an InvalidRequest whose `param` is the
field's path, written as OpenAI writes it (`messages[0].content[1].type`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from sovereign_ai.errors import InvalidRequest

ANY_TEXT = object()
"""In `NEUTRAL`: any text is without effect, as is a name for the caller's own books."""

MESSAGE_LIMIT = 400
"""Characters of an error message: a client's own value is echoed in it and may be megabytes."""

_SUPPORTED = {
    "role": "system, developer, user, assistant, tool",
    "encoding_format": "float, base64",
}
_JSON_WORDS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that a client sends."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {}
    """Fields that are not carried through → the one value that asks for nothing."""


_Request = TypeVar("_Request", bound=Body)


def parse(body: bytes, kind: type[_Request]) -> _Request:
    """Raises InvalidRequest."""
    return convert(supported_fields(decode_object(body), kind), kind)


def decode_object(body: bytes) -> dict[str, Any]:
    """Raises InvalidRequest (invalid_json) unless the body is a JSON object."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {_json_problem(error, body)}", code="invalid_json"
        ) from error
    if not isinstance(tree, dict):
        raise InvalidRequest("The body must be a JSON object", code="invalid_json")
    return tree


def supported_fields(tree: dict[str, Any], kind: type[Body], at: str = "") -> dict[str, Any]:
    """The fields of `tree` that have an effect; raises for those that would have one, were they supported."""
    given = {name: value for name, value in tree.items() if value is not None}
    kept = {name: value for name, value in given.items() if name in kind.__struct_fields__}
    for name, value in given.items():
        if name not in kept and not _is_neutral(value, kind.NEUTRAL.get(name)):
            raise unsupported(f"{at}{name}", takes_other=name in kind.NEUTRAL)
    return kept


def convert(tree: dict[str, Any], kind: type[_Request]) -> _Request:
    """Raises InvalidRequest that names the first field that is not as it must be."""
    try:
        return msgspec.convert(tree, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise refused(str(error)) from error


def unsupported(param: str, *, takes_other: bool = False, because: str = "") -> InvalidRequest:
    """`takes_other`: another value would do. `because`: what it is that the field does not go with."""
    what = "with this value is not supported" if takes_other else "is not supported"
    if because:
        what = f"{because} is not supported"
    return InvalidRequest(f"`{param}` {what}"[:MESSAGE_LIMIT], param=param, code="unsupported_parameter")


def invalid(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message[:MESSAGE_LIMIT], param=param, code="invalid_value")


def refused(text: str) -> InvalidRequest:
    """msgspec's wording of what is wrong, in the words of JSON."""
    problem, _, path = text.partition(" - at `")
    path = path.removeprefix("key` in `").removeprefix("$").rstrip("`").lstrip(".")
    if match := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        param = f"{path}.{match[1]}" if path else match[1]
        return InvalidRequest(f"`{param}` is required", param=param, code="missing_required_parameter")
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL):
        return unsupported(f"{path}.{match[1]}")
    return invalid(_explained(problem, path), path)


def _json_problem(error: Exception, body: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} in a text)"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    problem = str(error).removeprefix("JSON is malformed: ")
    return problem if "byte" in problem else f"{problem} (byte {len(body)})"


def _is_neutral(value: Any, neutral: Any) -> bool:
    if neutral is ANY_TEXT:
        return isinstance(value, str)
    # `True == 1` in Python, but `"echo": 0` is a mistake to point out
    return type(value) is type(neutral) and bool(value == neutral)


def _explained(problem: str, path: str) -> str:
    words = re.sub(r"\b(str|int|float|bool)\b", lambda word: _JSON_WORDS[word[0]], problem).replace("`", "")
    choices = _SUPPORTED.get(path.rpartition(".")[2], "") if problem.startswith("Invalid") else ""
    if choices:
        return f"Invalid `{path}`: {problem.rpartition('value ')[2]} is not supported, only {choices}"
    return f"Invalid `{path}`: {words[:1].lower()}{words[1:]}"
