"""Shell scripts in commands: `sh -c "ollama serve & ollama pull llama3"` → the commands in it. Pure.

No shell is written here: enough is understood to find which program is started with which words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from sovereign_ai.migrate.service import Word, placed

SHELLS = ("sh", "bash", "ash", "dash", "zsh")
KEYWORDS = ("do", "then", "else", "if", "while", "until", "!", "exec", "time", "nohup", "sudo", "env", "{")
MOST_COMMANDS = 1000

Command = tuple[Word, ...]


def commands(words: Sequence[Word], environment: Mapping[str, Word]) -> list[Command]:
    """The commands that `words` start: themselves, or those of the script behind `sh -c`."""
    for at, word in enumerate(words):
        flag = words[at + 1].text if at + 1 < len(words) else ""
        if PurePosixPath(word.text).name in SHELLS and re.fullmatch(r"-[a-z]*c", flag):
            script = words[at + 2] if at + 2 < len(words) else None
            return [] if script is None else _script(script, environment)
    # A health check is `CMD-SHELL` and a script.
    if words and words[0].text == "CMD-SHELL":
        return [command for word in words[1:] for command in _script(word, environment)]
    return [tuple(words)] if words else []


def program(command: Command) -> str:
    """The name of what is started, without its folder."""
    return PurePosixPath(command[0].text).name if command else ""


def _script(word: Word, environment: Mapping[str, Word]) -> list[Command]:
    text = re.sub(r"\\\r?\n", " ", word.text)
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    found: list[Command] = []
    loops: dict[str, tuple[Word, ...]] = {}
    for command in _with_places(_split(text), word):
        if len(command) > 3 and command[0].text == "for" and command[2].text == "in":
            loops[command[1].text] = command[3:]
            continue
        plain = _without_keywords(command)
        if plain:
            found += _each_time(plain, loops, environment)
        if len(found) > MOST_COMMANDS:
            break
    return found


_PART = re.compile(
    r"""'(?P<literal>[^']*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)|(?P<end>[;&|()\n])
    |(?P<space>[ \t\r]+)|(?P<plain>[^'"\\;&|()\s]+|.)""",
    re.VERBOSE | re.DOTALL,
)


def _split(text: str) -> list[list[str]]:
    """The words of each command. A quote that is not closed is a character like others."""
    found: list[list[str]] = [[]]
    word: str | None = None
    for part in _PART.finditer(text + "\n"):
        if part["end"] is None and part["space"] is None:
            word = (word or "") + _meant(part)
            continue
        if word is not None:
            found[-1].append(word)
            word = None
        if part["end"] is not None:
            found.append([])
    return found


def _meant(part: re.Match[str]) -> str:
    """Without its quotes."""
    if part["quoted"] is not None:
        return re.sub(r"\\([\"\\$`])", r"\1", part["quoted"])
    return next(text for name in ("literal", "escaped", "plain") if (text := part[name]) is not None)


def _with_places(found: Sequence[Sequence[str]], script: Word) -> Iterator[Command]:
    words = iter(placed([word for command in found for word in command], script.place, script.rows))
    for command in found:
        yield tuple(next(words) for _ in command)


def _without_keywords(command: Command) -> Command:
    """Nor `NAME=value` before the program."""
    at = 0
    while at < len(command) and (
        command[at].text in KEYWORDS or re.match(r"[A-Za-z_][A-Za-z0-9_]*=", command[at].text)
    ):
        at += 1
    return command[at:]


def _each_time(
    command: Command, loops: Mapping[str, tuple[Word, ...]], environment: Mapping[str, Word]
) -> list[Command]:
    """The command once for every word of the loop whose variable it uses, other variables filled in."""
    for name, values in loops.items():
        if any(_uses(word.text, name) for word in command):
            every = [
                tuple(_filled(word, {name: value}) for word in command)
                for value in _spread(values, environment)
            ]
            return [tuple(_filled(word, environment) for word in one) for one in every]
    return [tuple(_filled(word, environment) for word in command)]


def _spread(values: Sequence[Word], environment: Mapping[str, Word]) -> list[Word]:
    """`for m in $MODELS`: an unquoted variable is several words."""
    return [
        Word(part, word.place)
        for word in values[:MOST_COMMANDS]
        for part in _filled(word, environment).text.replace(",", " ").split()[:MOST_COMMANDS]
    ]


def _uses(text: str, name: str) -> bool:
    return re.search(rf"\$(\{{{re.escape(name)}\}}|{re.escape(name)}\b)", text) is not None


def _filled(word: Word, values: Mapping[str, Word]) -> Word:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return values[name].text if name in values else found[0]

    return word._replace(text=re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, word.text))
