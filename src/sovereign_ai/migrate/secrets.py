"""Keys and passwords of the old stack: found, so that none of them is ever shown. Pure.

Nothing that is unknown is shown by value anyway; this is the second wall.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from sovereign_ai.errors import SovereignError
from sovereign_ai.migrate.service import Service

_NAME = re.compile(
    r"(?i)(api[_-]?keys?|(?<!max[_-])(?<!new[_-])token|secret|password|passwd|pwd|credential|master[_-]?key|salt|_key)$"
)
_IN_ADDRESS = re.compile(r"://[^\s/:@]{0,200}:([^\s/@]+)@")

SHORTEST = 6
"""Characters. A shorter one (`none`, `EMPTY`) cannot be told from ordinary text."""

HIDDEN = "[hidden]"


def secrets_of(services: Iterable[Service], variables: Mapping[str, str]) -> frozenset[str]:
    """By the names of variables and options, and in addresses."""
    found = {value for name, value in variables.items() if _NAME.search(name)}
    for service in services:
        found |= set(_in_service(service))
    found |= {part for secret in found for part in re.split(r"[,\s]+", secret)}
    return frozenset(secret for secret in found if len(secret) >= SHORTEST)


def _in_service(service: Service) -> Iterator[str]:
    for name, word in service.environment.items():
        if _NAME.search(name):
            yield word.text
        yield from _IN_ADDRESS.findall(word.text)
        yield from _in_text(word.text)
    words = [word.text for word in (*service.words, *service.others)]
    for text, following in zip(words, [*words[1:], ""][: len(words)], strict=True):
        flag, equals, value = text.partition("=")
        if flag.startswith("-") and _NAME.search(flag):
            yield value if equals else following
        yield from _IN_ADDRESS.findall(text)
        yield from _in_text(text)


def _in_text(text: str) -> Iterator[str]:
    """In scripts, variables that hold a command line, and headers."""
    yield from re.findall(
        r"(?i)--?[a-z-]{0,40}(?:api[_-]?keys?|token|secret|password)[= ]+[\"']?([^\s\"']+)", text
    )
    yield from re.findall(r"(?i)\bbearer\s+([^\s\"']+)", text)


def hidden(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of the secrets, the longest first."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def concealed(error: SovereignError, secrets: Iterable[str]) -> SovereignError:
    """The same error without any of the secrets. Its cause is dropped: it may hold one."""
    known = tuple(secrets)
    return type(error)(hidden(error.message, known), hidden(error.hint, known))
