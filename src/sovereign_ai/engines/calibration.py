"""Calibration data: a file of the user's own, text or JSON lines, read into samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from sovereign_ai.errors import UsageError

JSON_LINES = (".jsonl", ".ndjson")
SAMPLES_MAX = 256
"""Read from the beginning of the file. GPTQ's authors use 128 (https://arxiv.org/abs/2210.17323); every
sample passes through the model twice, which on a CPU is what takes the time."""
SAMPLES_ENOUGH = 64
"""Below this the result depends on the luck of the choice, and the user is told."""
TEXT_CHARACTERS = 2000
"""Of plain text, lines are put together to samples of about this length: 500 tokens of English."""
SHAPE = 'a line is {"text": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}'


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Text as it is, or messages for the model's chat template: one of the two."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None


class Calibration(NamedTuple):
    """`file` is the name alone; the digest is of the whole file, whatever was read of it."""

    file: str
    sha256: str
    samples: tuple[Sample, ...]


def read_calibration(path: Path) -> Calibration:
    """Raises UsageError that names the file, and the line where there is one."""
    try:
        with path.open("rb") as file:
            samples = tuple(_samples(path, file))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "name a file: --calibration") from error
    if not samples:
        raise UsageError(f"{path}: holds no text to calibrate with", SHAPE if _is_json(path) else "")
    return Calibration(path.name, digest, samples)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in JSON_LINES


def _samples(path: Path, file: BinaryIO) -> Iterator[Sample]:
    lines = _lines(path, file)
    found = _of_json(path, lines) if _is_json(path) else _of_text(line for _, line in lines)
    for _, sample in zip(range(SAMPLES_MAX), found, strict=False):
        yield sample


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank."""
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}:{number}: not UTF-8: {error.reason}") from error
        if text.strip():
            yield number, text


def _of_text(lines: Iterable[str]) -> Iterator[Sample]:
    """Lines put together, and those that are too long cut."""
    gathered = ""
    for line in lines:
        gathered += line
        while len(gathered) >= TEXT_CHARACTERS:
            yield Sample(text=gathered[:TEXT_CHARACTERS])
            gathered = gathered[TEXT_CHARACTERS:]
    if gathered.strip():
        yield Sample(text=gathered)


def _of_json(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Sample]:
    for number, line in lines:
        try:
            sample = msgspec.json.decode(line, type=Sample)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"{path}:{number}: {error}", SHAPE) from error
        if bool(sample.text) == bool(sample.messages):
            raise UsageError(f"{path}:{number}: needs either `text` or `messages`", SHAPE)
        yield sample
