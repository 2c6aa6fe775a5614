"""GGUF → a model folder that vLLM and transformers read: SafeTensors, config, tokenizer.

Weights are dequantised on every core and written in order, a block of rows at a time: memory stays at a few
blocks whatever the size of the model.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from sovereign_ai.console import Progress
from sovereign_ai.errors import BadModelFile, UnsupportedModel
from sovereign_ai.store.decoder import ELSEWHERE, Blueprint, Target
from sovereign_ai.store.dequantize import (
    SIZES,
    Dtype,
    Floats,
    dequantise,
    encoded,
    fits,
    readable,
    recoded,
)
from sovereign_ai.store.families import read_blueprint
from sovereign_ai.store.gguf_file import GgufFile, TensorInfo
from sovereign_ai.store.special_tokens import config_ids, generation_config
from sovereign_ai.store.split import read_parts
from sovereign_ai.store.tokenizer import TokenizerFiles, convert_tokenizer
from sovereign_ai.store.weights import TensorHeader, write_weights

__all__ = ["Conversion", "Dtype", "read_conversion"]

WEIGHTS_NAME = "model.safetensors"
BLOCK_BYTES = 4 << 20
"""Of dequantised float32 values at a time: large against the cost of a step, small enough for the cache."""
THREADS = len(os.sched_getaffinity(0))
KEPT_BYTES = 24 << 20
"""glibc gives freed memory back to the system, page by page, and every step asks for it again, unless
something as large was freed before: then twice as much stays (`M_MMAP_THRESHOLD` in mallopt(3), which grows
so up to 32 MiB)."""
AHEAD = 2
"""Blocks that may wait for their turn to be written, beside those in the making."""


class Conversion(NamedTuple):
    """A GGUF that has been checked as far as it can be without reading the weights."""

    file: GgufFile
    dtype: Dtype
    blueprint: Blueprint
    tokenizer: TokenizerFiles

    @property
    def config(self) -> dict[str, Any]:
        return {**self.blueprint.config, "torch_dtype": self.dtype, **config_ids(self.file)}

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.blueprint.targets

    @property
    def sources(self) -> tuple[Path, ...]:
        """The file, and every other part where it is the first of several."""
        return tuple(dict.fromkeys([self.file.path, *(info.path for info in self.file.tensors)]))

    @property
    def weights_bytes(self) -> int:
        return sum(header.size for header in self.headers)

    @property
    def headers(self) -> tuple[TensorHeader, ...]:
        size = SIZES[self.dtype]
        return tuple(
            TensorHeader(target.name, self.dtype, target.shape, math.prod(target.shape) * size)
            for target in self.targets
        )

    @property
    def license(self) -> str | None:
        return self.file.text("general.license", "") or None

    def write(self, folder: Path, progress: Progress) -> None:
        """Write everything into `folder`, which must not exist. Progress in bytes of weights written."""
        folder.mkdir()
        write_weights(folder / WEIGHTS_NAME, self.headers, _blocks(self.targets, self.dtype), progress)
        for name, content in self._documents().items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        (folder / "tokenizer.json").write_text(self.tokenizer.tokenizer, encoding="utf-8")

    def _documents(self) -> dict[str, Any]:
        """Every JSON file but the tokenizer's large one. Models that embed generate nothing."""
        documents: dict[str, Any] = {
            "config.json": self.config,
            "tokenizer_config.json": self.tokenizer.config,
            "special_tokens_map.json": self.tokenizer.special_tokens,
            **self.blueprint.files,
        }
        if self.config["architectures"][0].endswith("ForCausalLM") and not self.blueprint.files:
            documents["generation_config.json"] = generation_config(self.file)
        return documents


def read_conversion(path: Path, dtype: Dtype = "float32") -> Conversion:
    """Check a GGUF and work out what it becomes.

    With float32 every dequantised value is kept exactly; bfloat16 and float16 round to nearest and halve
    the weights. Raises BadModelFile or UnsupportedModel.
    """
    file = read_parts(path)
    blueprint = read_blueprint(file)
    for kind in {target.info.type for target in blueprint.targets}:
        if not readable(kind):
            raise UnsupportedModel(f"{path}: weights of type {kind.name} cannot be converted", ELSEWHERE)
    tokenizer = convert_tokenizer(file, blueprint.vocabulary, blueprint.context)
    return Conversion(file, dtype, blueprint, tokenizer)


class _Step(NamedTuple):
    """Some whole rows of a tensor: where they lie in the source, in bytes."""

    target: Target
    source: int
    offset: int
    size: int
    dtype: Dtype

    def run(self) -> memoryview:
        """Read, dequantise, put in order, encode. Runs in a thread: numpy lets others run meanwhile."""
        info = self.target.info
        raw = os.pread(self.source, self.size, self.offset)
        if len(raw) != self.size:
            raise BadModelFile(f"{info.path}: changed while it was read: tensor `{info.name}` ends early")
        blocks = np.frombuffer(raw, np.uint8)
        if not self.target.change and (made := recoded(blocks, info.type, self.dtype)) is not None:
            return made.data.cast("B")
        values = dequantise(blocks, info.type)
        if self.target.change:
            values = self.target.change(values.reshape(-1, info.shape[-1])).reshape(-1)
        return _encoded(info, values, self.dtype)


def _encoded(info: TensorInfo, values: Floats, dtype: Dtype) -> memoryview:
    if not fits(values, dtype):
        raise BadModelFile(
            f"{info.path}: tensor `{info.name}` has values that {dtype} cannot hold, or are no numbers"
        )
    return encoded(values, dtype).data.cast("B")


def _blocks(targets: tuple[Target, ...], dtype: Dtype) -> Iterator[memoryview]:
    """The data of all targets in order, made by a few threads."""
    waiting: deque[Future[memoryview]] = deque()
    with ExitStack() as stack:
        paths = {target.info.path for target in targets}
        sources = {path: stack.enter_context(path.open("rb")).fileno() for path in paths}
        np.empty(KEPT_BYTES, np.uint8)  # freed at once, and never touched
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="convert")
        stack.callback(pool.shutdown, cancel_futures=True)
        for target in targets:
            for step in _steps(target, sources[target.info.path], dtype):
                waiting.append(pool.submit(step.run))
                if len(waiting) > THREADS + AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _steps(target: Target, source: int, dtype: Dtype) -> Iterator[_Step]:
    info, unit = target.info, target.unit
    row_bytes = info.size // info.rows
    rows = max(1, BLOCK_BYTES // (info.shape[-1] * 4 * unit)) * unit
    for start in range(0, info.rows, rows):
        size = min(rows, info.rows - start) * row_bytes
        yield _Step(target, source, info.offset + start * row_bytes, size, dtype)
