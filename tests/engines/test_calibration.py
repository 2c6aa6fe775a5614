from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.engines import calibration
from sovereign_ai.engines.calibration import TEXT_CHARACTERS, Message, Sample, read_calibration
from sovereign_ai.errors import UsageError


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_plain_text_becomes_samples_of_one_length(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("one line\n\n   \n" + "word " * 1000 + "\nthe end\n")
    found = read_calibration(path)
    texts = [sample.text or "" for sample in found.samples]
    assert [len(text) for text in texts[:-1]] == [TEXT_CHARACTERS] * 2
    assert "".join(texts) == "one line\n" + "word " * 1000 + "\nthe end\n"
    assert found.file == "words.txt"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=50), max_size=200))
def test_no_text_is_lost(texts: list[str]) -> None:
    told = [text + "\n" for text in texts if text.strip()]
    samples = list(calibration._of_text(told))
    assert "".join(sample.text or "" for sample in samples) == "".join(told)


def test_json_lines_have_text_or_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi", "name": "x"}, {"role": "assistant", "content": "Hello"}]
    path = lines(tmp_path / "a.JSONL", {"text": "words", "id": 1}, {"messages": messages})
    assert read_calibration(path).samples == (
        Sample(text="words"),
        Sample(messages=(Message("user", "Hi"), Message("assistant", "Hello"))),
    )


def test_the_beginning_of_a_long_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLES_MAX", 2)
    path = lines(tmp_path / "a.jsonl", {"text": "1"}, {"text": "2"}, {"text": "3"})
    path.write_text(path.read_text() + "not JSON")
    assert [sample.text for sample in read_calibration(path).samples] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: holds no text"),
        ("a.txt", b" \n\n", "a.txt: holds no text"),
        ("a.jsonl", b"", "a.jsonl: holds no text"),
        ("a.txt", b"fine\n\xff\xfe\n", "a.txt:2: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text"\n', "a.jsonl:3: "),
        ("a.jsonl", b'"text"\n', "a.jsonl:1: Expected `object`"),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1: Expected `str"),
        ("a.jsonl", b'{"prompt": "a"}\n', "a.jsonl:1: needs either `text` or `messages`"),
        ("a.jsonl", b'{"text": "", "messages": []}\n', "a.jsonl:1: needs either"),
        ("a.jsonl", b'{"text": "a", "messages": [{"role": "b", "content": "c"}]}\n', "a.jsonl:1: needs"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "a.jsonl:1: Object missing required field"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_calibration(tmp_path / name)
    assert caught.value.message.startswith(f"{tmp_path}/{message}")


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_calibration(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="Is a directory"):
        read_calibration(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert read_calibration(tmp_path / "a.jsonl").samples == (Sample(text="a"),)
