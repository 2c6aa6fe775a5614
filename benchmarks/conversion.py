"""How fast a GGUF becomes SafeTensors, and a model is verified, against reading and hashing the bytes.

    .venv/bin/python benchmarks/conversion.py            (about three minutes, 2 GB in the temporary folder)

The limit is one pass of SHA-256 over the bytes read and written, by as many threads as conversion uses; both
are timed in turn, several rounds, and the medians compared. The files are in the page cache for both. Weights
are random blocks of a Llama; peak memory (the kernel's high-water mark) is that of a process of its own,
beyond what importing takes. Ratios are of seconds on the clock and of seconds of processor time: on a machine
that others use too, only the second says much.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sovereign_ai.console import Silent
from sovereign_ai.store.convert import THREADS, WEIGHTS_NAME, Dtype, read_conversion
from sovereign_ai.store.digest import sha256_files

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 16, 4, 32_000
KINDS = ("Q4_1", "Q4_K", "Q8_0", "F16")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
SCALES = {"Q4_1": (0, 4), "Q4_K": (0, 4), "Q6_K": (208, 210), "Q8_0": (0, 2)}
"""Which bytes of a block are float16: kept small, so that every value is a number."""
AIM = 0.6
PIECE = 1 << 20


class Job(NamedTuple):
    """One GGUF, and one type that it is converted to."""

    path: Path
    kind: str
    dtype: Dtype


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of one layer."""
    keys = HIDDEN // HEADS * KV_HEADS
    yield from {
        "attn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (keys, HIDDEN),
        "attn_v": (keys, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }.items()


def blocks(kind: str, shape: tuple[int, ...], dice: np.random.Generator) -> np.ndarray[Any, Any]:
    if kind == "F16":
        return dice.standard_normal(shape, np.float32).astype(np.float16)
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    found = dice.integers(0, 256, (shape[0] * shape[1] // per_block, block_bytes), dtype=np.uint8)
    begin, end = SCALES[kind]
    found[:, begin:end] &= 0x2F
    return found.reshape(shape[0], -1)


def make(path: Path, kind: str, megabytes: int) -> Path:
    """A Llama of as many layers as the size takes, of random blocks."""
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    values = sum(int(np.prod(shape)) for _, shape in shapes())
    room = (megabytes << 20) - VOCABULARY * HIDDEN * block_bytes // per_block
    layers = max(1, round(room * per_block / block_bytes / values))
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer, layers)
    dice = np.random.default_rng(1)
    tensors = [("token_embd.weight", (VOCABULARY, HIDDEN)), ("output_norm.weight", (HIDDEN,))]
    tensors += [(f"blk.{n}.{name}.weight", shape) for n in range(layers) for name, shape in shapes()]
    for name, shape in tensors:
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            writer.add_tensor(name, blocks(kind, shape, dice), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def describe(writer: Any, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab", *(f"<{number}>" for number in range(3, VOCABULARY))])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time over all threads."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def convert(job: Job, folder: Path) -> None:
    read_conversion(job.path, job.dtype).write(folder, Silent())


def hashed(paths: Sequence[Path], threads: int) -> None:
    """One pass over the bytes of all paths, each thread an equal share."""
    parts = []
    for path in paths:
        size = path.stat().st_size
        edges = [size * n // threads for n in range(threads + 1)]
        parts += [(path, begin, end) for begin, end in pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: hash_part(*part), parts))


def hash_part(path: Path, begin: int, end: int) -> None:
    digest = hashlib.sha256()
    buffer = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while begin < end:
            count = file.readinto(memoryview(buffer)[: min(PIECE, end - begin)])
            digest.update(memoryview(buffer)[:count])
            begin += count


def measure(job: Job, rounds: int) -> dict[str, Any]:
    """Conversion, the limit, and verification of what was made, one after the other in every round."""
    folder = job.path.parent / "out"
    made = folder / WEIGHTS_NAME
    steps: dict[str, Callable[[], object]] = {
        "convert": lambda: convert(job, folder),
        "limit": lambda: hashed((job.path, made), THREADS),
        "verify": lambda: sha256_files([made], Silent()),
        "verify_limit": lambda: hashed((made,), 1),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        for name, step in steps.items():
            times[name].append(timed(step))
    read, written = job.path.stat().st_size, made.stat().st_size
    shutil.rmtree(folder)
    medians = {name: statistics.median(clock for clock, _ in values) for name, values in times.items()}
    used = {name: statistics.median(cpu for _, cpu in values) for name, values in times.items()}
    return {
        "from": job.kind,
        "to": job.dtype,
        "read_bytes": read,
        "written_bytes": written,
        "seconds": medians["convert"],
        "bytes_per_s": (read + written) / medians["convert"],
        "limit_bytes_per_s": (read + written) / medians["limit"],
        "ratio": medians["limit"] / medians["convert"],
        "processor_ratio": used["limit"] / used["convert"],
        "verify_bytes_per_s": written / medians["verify"],
        "verify_ratio": medians["verify_limit"] / medians["verify"],
        "verify_processor_ratio": used["verify_limit"] / used["verify"],
        "peak_bytes": peak(job, folder),
        "rounds": {name: [round(clock, 3) for clock, _ in values] for name, values in times.items()},
    }


def peak(job: Job, folder: Path) -> int:
    """Memory that one conversion takes beyond importing, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(job.path), job.dtype, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(folder)
    return int(done.stdout)


def one(path: str, dtype: Dtype, folder: str) -> None:
    before = high_water()
    convert(Job(Path(path), "", dtype), Path(folder))
    print(high_water() - before)


def high_water() -> int:
    """Most resident memory so far, in bytes. Unlike getrusage's, it does not count the parent's."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def machine() -> str:
    name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{name[1] if name else platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared"


HEADINGS = (
    "from",
    "to",
    "read + written",
    "convert",
    "limit",
    "of the clock",
    "of the processor",
    "verify",
    "of the clock",
    "peak memory",
)


def show(rows: Sequence[dict[str, Any]]) -> None:
    print("| " + " | ".join(HEADINGS) + " |")
    print("|---|---" + "|---:" * (len(HEADINGS) - 2) + "|")
    for row in rows:
        cells = (
            row["from"],
            row["to"],
            f"{(row['read_bytes'] + row['written_bytes']) / 1e6:,.0f} MB",
            f"{row['bytes_per_s'] / 1e6:,.0f} MB/s",
            f"{row['limit_bytes_per_s'] / 1e6:,.0f} MB/s",
            f"{row['ratio']:.2f}",
            f"{row['processor_ratio']:.2f}",
            f"{row['verify_bytes_per_s'] / 1e6:,.0f} MB/s",
            f"{row['verify_ratio']:.2f}",
            f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        )
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200, help="size of every GGUF")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES))
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    rows = []
    for kind in options.kinds:
        with tempfile.TemporaryDirectory(prefix="conversion-") as place:
            path = make(Path(place) / "m.gguf", kind, options.megabytes)
            rows += [measure(Job(path, kind, dtype), options.rounds) for dtype in options.dtypes]
    print(f"{machine()}; {THREADS} threads; medians of {options.rounds} rounds\n")
    show(rows)
    below = [f"{row['from']} to {row['to']}" for row in rows if row["processor_ratio"] < AIM]
    missed = f"missed by {', '.join(below)}" if below else "met by all"
    print(f"\naim {AIM} of the limit in processor time: {missed}")
    if options.out:
        record = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "threads": THREADS, "rows": rows}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
