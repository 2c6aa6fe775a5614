"""What an engine was told: options and variables of its environment, by one name each. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sovereign_ai.migrate.service import Service, Word, whole
from sovereign_ai.migrate.tree import Place

LONGEST_CONTEXT = 16 * 1024 * 1024
"""Tokens. No model reads so many; a longer one is a slip of the finger."""


class Known(NamedTuple):
    """How one setting is spelled, on the command line and in the environment. `switch`: it takes no value.
    `why` is what takes its place, for those that are not carried over."""

    flags: str
    variables: str = ""
    switch: bool = False
    why: str = ""


class Settings(NamedTuple):
    """Values by the setting's name, and how it was spelled."""

    found: Mapping[str, tuple[Word, ...]]
    spelled: Mapping[str, Word]
    others: tuple[Word, ...]
    """Options that are not known."""
    leading: tuple[Word, ...]
    """Words before the first option."""
    overridden: tuple[tuple[Word, Word], ...] = ()
    """What was given first, and what with another value later: the later one counts."""

    def get(self, name: str) -> Word | None:
        """The value; None where it is not given or empty."""
        values = self.found.get(name, ())
        return values[0] if values and values[0].text.strip() else None

    def on(self, name: str) -> Word | None:
        """The word of a switch that is on."""
        word = self.get(name)
        return word if word and word.text.strip().lower() not in ("0", "false", "no", "off") else None

    def whole(self, name: str, what: str, least: int, most: int) -> tuple[int, Place] | None:
        """Raises ConfigError for what is no such number."""
        word = self.get(name)
        return None if word is None else (whole(word.text, what, word.place, least, most), word.place)


def read_settings(service: Service, words: Sequence[Word], known: Mapping[str, Known]) -> Settings:
    """The command line wins over the environment, a later option over an earlier one."""
    found: dict[str, tuple[Word, ...]] = {}
    spelled: dict[str, Word] = {}
    for name, setting in known.items():
        for variable in setting.variables.split():
            word = service.environment.get(variable)
            if word is not None and word.text.strip() and name not in found:
                found[name], spelled[name] = (word,), Word(variable, word.place)
    by_flag = {flag: name for name, setting in known.items() for flag in setting.flags.split()}
    others: list[Word] = []
    overridden: list[tuple[Word, Word]] = []
    leading, options = _options(words)
    for option, values in options:
        known_name = by_flag.get(option.text)
        if known_name is None:
            others.append(option)
        else:
            switch = known[known_name].switch and not _says_no(values)
            given = (Word("true", option.place),) if switch else values
            if known_name in found and _texts(found[known_name]) != _texts(given):
                overridden.append((spelled[known_name], option))
            found[known_name] = given
            spelled[known_name] = option
    return Settings(found, spelled, tuple(others), tuple(leading), tuple(overridden))


def _texts(words: Sequence[Word]) -> list[str]:
    return [word.text for word in words]


def _says_no(values: tuple[Word, ...]) -> bool:
    return bool(values) and values[0].text.strip().lower() in ("0", "false", "off", "no")


def _options(words: Sequence[Word]) -> tuple[list[Word], list[tuple[Word, tuple[Word, ...]]]]:
    """Words before the first option, and each option with all words up to the next one."""
    leading: list[Word] = []
    options: list[tuple[Word, tuple[Word, ...]]] = []
    for word in words:
        if is_option(word.text):
            flag, equals, value = word.text.partition("=")
            first = (Word(value, word.place),) if equals else ()
            options.append((Word(_spelling(flag), word.place), first))
        elif options:
            option, values = options[-1]
            options[-1] = (option, (*values, word))
        else:
            leading.append(word)
    return leading, options


def is_option(text: str) -> bool:
    """`-1` is a number, `-c` and `--ctx-size` are options."""
    return re.match(r"--?[A-Za-z]", text) is not None


def _spelling(flag: str) -> str:
    """Most of these programs take `--max_model_len` for `--max-model-len`."""
    return flag.replace("_", "-") if flag.startswith("--") else flag


def tokens(text: str, place: Place, what: str = "a context in tokens") -> int:
    """32768, 32k (thousand) or 32K (1,024), as vLLM reads them. Raises ConfigError for anything else."""
    scaled = re.fullmatch(r"([0-9]{1,8})([kKmM])", text.strip())
    if scaled is None:
        return whole(text, what, place, 16, LONGEST_CONTEXT)
    scale = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}[scaled[2]]
    return whole(str(int(scaled[1]) * scale), what, place, 16, LONGEST_CONTEXT)
