"""One real GPU against the inventory, the catalog and the planner's formulas. A few minutes; needs torch,
not vLLM.

    python benchmarks/real_gpu.py --out OUT          (on a machine with an NVIDIA GPU)
    python benchmarks/real_gpu.py --dry-run --out OUT    (on a CPU: the way through, with a toy model)

Models are decoders of the true shapes with random weights in bfloat16, written here with PyTorch's own
kernels (scaled_dot_product_attention, fused normalization), decoding from captured CUDA graphs. So what is
measured is what bytes, operations and launches cost on this card; what vLLM adds (scheduling, sampling, its
own kernels) is not.

Nothing of the card is changed. Writes inventory.json (UUIDs masked), points.csv (speeds, in the format that
prediction.py and `sovereign calibrate --from` read), memory.csv and table.md, which is printed last.
"""

# torch and pynvml have no types where this is checked.
# mypy: disable-error-code="no-any-return, no-untyped-call, misc"

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812

from sovereign_ai.catalog.gpus import find_gpu, gpu_facts  # noqa: E402
from sovereign_ai.catalog.shapes import find_shape  # noqa: E402
from sovereign_ai.catalog.speed import Constants, constants_for  # noqa: E402
from sovereign_ai.planner import calibration, performance  # noqa: E402
from sovereign_ai.planner.evidence import decode_points, prompt_points, weighed  # noqa: E402
from sovereign_ai.planner.memory import GIB  # noqa: E402
from sovereign_ai.planner.performance import Stage  # noqa: E402
from sovereign_ai.spec import Inventory, Shape  # noqa: E402

MODELS = ("smollm2-135m", "qwen2.5-7b", "llama-3.1-8b", "mistral-nemo")
BATCHES = (1, 8, 32)
CONTEXT = 1024
PROMPTS = (512, 2048, 8192)
KV_LENGTHS = (4096, 32768)
GRAPH_SIZES = (1, 2, 4, *range(8, 257, 8))
TOY = Shape(
    architecture="LlamaForCausalLM",
    parameters=0,
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=128,
    vocabulary=512,
    context_max=4096,
)
EPSILON = 1e-5


class SpeedRow(NamedTuple):
    """Tokens a second; `errors` before and after calibrating; `fitted`: one of the rows calibrated with."""

    model: str
    what: str
    measured: float
    before: float
    after: float
    fitted: bool


class Decoder:
    """A decoder of a true shape with random weights. `positions` tokens of KV cache for `batch` sequences."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        h, kv, dim = shape.hidden, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
        self.embed = self._weight(shape.vocabulary, h)
        self.head = self.embed if shape.tied_head else self._weight(shape.vocabulary, h)
        self.layers = [
            {
                "qkv": self._weight(dim + 2 * kv, h),
                "o": self._weight(h, dim),
                "up": self._weight(2 * shape.intermediate, h),
                "down": self._weight(h, shape.intermediate),
                "norm1": self._weight(h),
                "norm2": self._weight(h),
            }
            for _ in range(shape.layers)
        ]
        self.norm = self._weight(h)
        angles = torch.arange(shape.context_max, device=device, dtype=torch.float32)
        frequencies = 1e6 ** (-torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim)
        phases = torch.outer(angles, frequencies)
        self.rope = torch.cat((phases.cos(), phases.sin()), dim=-1).to(torch.bfloat16)

    def _weight(self, *size: int) -> torch.Tensor:
        return torch.empty(*size, device=self.device, dtype=torch.bfloat16).normal_(0, 0.02)

    def cache(self, batch: int, positions: int) -> torch.Tensor:
        shape = self.shape
        size = (shape.layers, 2, batch, shape.kv_heads, positions, shape.head_dim)
        return torch.zeros(size, device=self.device, dtype=torch.bfloat16)

    def _rotate(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """x: batch, heads, tokens, head_dim."""
        half = self.shape.head_dim // 2
        table = self.rope[start : start + x.shape[2]]
        cos, sin = table[:, :half], table[:, half:]
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def run(self, ids: torch.Tensor, cache: torch.Tensor | None, start: int) -> torch.Tensor:
        """Logits of the last token. ids: batch, tokens. With a cache, which holds `start` tokens."""
        x = F.embedding(ids, self.embed)
        for number, layer in enumerate(self.layers):
            x = x + self._attend(x, layer, None if cache is None else cache[number], start)
            x = x + self._mlp(x, layer)
        x = F.rms_norm(x[:, -1], (self.shape.hidden,), self.norm, EPSILON)
        return F.linear(x, self.head)

    def _attend(
        self, x: torch.Tensor, layer: dict[str, torch.Tensor], cache: torch.Tensor | None, start: int
    ) -> torch.Tensor:
        shape, (batch, tokens, _) = self.shape, x.shape
        kv, dim = shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
        y = F.rms_norm(x, (shape.hidden,), layer["norm1"], EPSILON)
        q, k, v = F.linear(y, layer["qkv"]).split((dim, kv, kv), dim=-1)
        q, k, v = (t.view(batch, tokens, -1, shape.head_dim).transpose(1, 2) for t in (q, k, v))
        q, k = self._rotate(q, start), self._rotate(k, start)
        if cache is not None:
            cache[0, :, :, start : start + tokens] = k
            cache[1, :, :, start : start + tokens] = v
            k, v = (cache[which, :, :, : start + tokens] for which in (0, 1))
        grouped = shape.heads != shape.kv_heads
        a = F.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1, enable_gqa=grouped)
        return F.linear(a.transpose(1, 2).reshape(batch, tokens, dim), layer["o"])

    def _mlp(self, x: torch.Tensor, layer: dict[str, torch.Tensor]) -> torch.Tensor:
        y = F.rms_norm(x, (self.shape.hidden,), layer["norm2"], EPSILON)
        gate, up = F.linear(y, layer["up"]).chunk(2, dim=-1)
        # In place, as vLLM's fused kernel: three widths at the peak, not four.
        return F.linear(F.silu(gate).mul_(up), layer["down"])


class Bench:
    """The device, and how things are timed and weighed on it."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")

    def sync(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def allocated(self) -> int:
        return 0 if self.dry else torch.cuda.memory_allocated()

    def used(self) -> int:
        """Of the whole card."""
        if self.dry:
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free

    def peak(self, work: Callable[[], Any]) -> int:
        """Bytes that work takes at its peak, beyond what is allocated before."""
        if self.dry:
            work()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def seconds(self, work: Callable[[], Any], repeat: int) -> float:
        """Median of one call, after warming up."""
        times = []
        for _ in range(3):
            work()
        self.sync()
        for _ in range(repeat):
            started = time.perf_counter()
            work()
            self.sync()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def captured(self, work: Callable[[], Any], pool: Any = None) -> Callable[[], Any]:
        """The work as a CUDA graph; itself on a CPU."""
        if self.dry:
            return work
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        return graph.replay

    def clean(self) -> None:
        if not self.dry:
            torch.cuda.empty_cache()


def ours(home: Path) -> dict[str, str]:
    """An environment in which `python -m sovereign_ai` is this checkout's."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "SOVEREIGN_HOME": str(home)}


def survey(out: Path, dry: bool) -> tuple[Inventory, list[list[str]]]:
    """`sovereign inventory` and `sovereign tiers` on the real driver, and each figure beside the
    catalog's."""
    import msgspec

    command = [sys.executable, "-m", "sovereign_ai"]
    environment = ours(out / "home")

    def call(*words: str) -> str:
        return subprocess.run(
            [*command, *words], env=environment, check=True, capture_output=True, text=True
        ).stdout

    text = call("inventory", "--json")
    inventory = msgspec.json.decode(text, type=Inventory)
    print(call("inventory"))
    print(call("tiers"))
    # Exit code 1 is an answer too: it says what of this machine is at fault.
    for words in (["doctor"], ["doctor", "--json"]):
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        print(done.stdout)
    (out / "doctor.json").write_text(done.stdout)
    masked = re.sub(
        r"GPU-[0-9a-f-]{36}",
        lambda match: "GPU-" + hashlib.sha256(match[0].encode()).hexdigest()[:8],
        text,
    )
    masked = re.sub(r'("nodes": \[\s*\{\s*"name": )"[^"]*"', r'\1"real"', masked)
    (out / "inventory.json").write_text(masked)
    if dry:
        return inventory, []
    device = inventory.devices[0]
    facts, warning = gpu_facts(device)
    empty = [
        name
        for name in ("pcie", "bandwidth_bytes_per_s", "display_attached", "power_limit_w")
        if getattr(device, name) is None
    ]
    rows = [
        ["name", device.name, facts.name + (f" ({warning})" if warning else "")],
        ["compute capability", str(device.compute_capability), facts.compute_capability],
        ["NVML total, MiB", f"{device.memory_bytes / 2**20:,.0f}", f"{facts.memory_bytes / 2**20:,.0f}"],
        [
            "CUDA total, GiB",
            f"{torch.cuda.mem_get_info()[1] / GIB:.2f}",
            f"{facts.cuda_memory_bytes / GIB:.2f}",
        ],
        [
            "bandwidth, GB/s",
            f"{(device.bandwidth_bytes_per_s or 0) / 1e9:,.0f}",
            f"{facts.bandwidth_bytes_per_s / 1e9:,.0f}",
        ],
        [
            "PCIe",
            str(device.pcie and f"{device.pcie.generation}.0 x{device.pcie.width}"),
            f"{facts.pcie_generation}.0 x{facts.pcie_width}",
        ],
        ["power limit, W", str(device.power_limit_w), str(facts.power_w)],
        ["fields left empty", ", ".join(empty) or "none", ""],
    ]
    return inventory, rows


CONTEXT_PROBE = """
import torch, json
free, total = torch.cuda.mem_get_info()
# The first call made the context; what it holds is what other tools see less.
import pynvml; pynvml.nvmlInit()
h = pynvml.nvmlDeviceGetHandleByIndex(0)
def used(): return pynvml.nvmlDeviceGetMemoryInfo(h).used
context = used()
a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16); b = a @ a; torch.cuda.synchronize()
print(json.dumps({"context": context, "with_cublas": used() - torch.cuda.memory_reserved()}))
"""


def overheads() -> list[dict[str, str]]:
    """CUDA context alone, and with cuBLAS, in a process of its own."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
    done = subprocess.run([sys.executable, "-c", CONTEXT_PROBE], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return [row("", "context", total, found["with_cublas"] - before)]


def row(model: str, kind: str, size: int, measured: int) -> dict[str, str]:
    """One line of memory.csv; planner.evidence.weighed says what each kind is."""
    gpu = "" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    return {"gpu": gpu, "model": model, "kind": kind, "size": str(size), "measured_bytes": str(measured)}


def weigh(bench: Bench, name: str, shape: Shape) -> tuple[Decoder, list[dict[str, str]]]:
    """Weights, KV caches, prefill peaks."""
    before = bench.allocated()
    decoder = Decoder(shape, bench.device)
    bench.sync()
    rows = [row(name, "weights", 0, bench.allocated() - before)]
    for length in KV_LENGTHS if not bench.dry else (64,):
        before = bench.allocated()
        cache = decoder.cache(1, length)
        rows.append(row(name, "kv", length, bench.allocated() - before))
        del cache
    for length in PROMPTS[1:] if not bench.dry else (32,):
        ids = torch.zeros((1, length), device=bench.device, dtype=torch.long)
        with torch.inference_mode():
            decoder.run(ids, None, 0)
            bench.clean()
            peak = bench.peak(lambda ids=ids: decoder.run(ids, None, 0))
        rows.append(row(name, "step", length, peak))
    return decoder, rows


def weigh_graphs(bench: Bench, name: str, decoder: Decoder) -> dict[str, str]:
    """35 batch sizes in one pool, as vLLM captures them for 256 sequences."""
    cache = decoder.cache(GRAPH_SIZES[-1], 64)
    graphs = []
    sizes = GRAPH_SIZES if not bench.dry else (1, 2)
    with torch.inference_mode():
        ids = torch.zeros((GRAPH_SIZES[-1], 1), device=bench.device, dtype=torch.long)
        for size in sizes:  # loads every kernel: the driver keeps code once, whoever calls it first
            decoder.run(ids[:size], cache[:, :, :size], 63)
        bench.captured(lambda: decoder.run(ids, cache, 63))
        bench.sync()
        bench.clean()
        before = bench.used()
        pool = None if bench.dry else torch.cuda.graph_pool_handle()
        for size in reversed(sizes):

            def step(size: int = size) -> torch.Tensor:
                return decoder.run(ids[:size], cache[:, :, :size], 63)

            graphs.append(bench.captured(step, pool))
        bench.sync()
        taken = bench.used() - before
    return row(name, "graphs", GRAPH_SIZES[-1], taken)


def ceilings(bench: Bench) -> list[list[str]]:
    """Device-to-device copy and bf16 matrix product: what the card itself can do."""
    size = (1 << 30) if not bench.dry else (1 << 20)
    a = torch.zeros(size, device=bench.device, dtype=torch.uint8)
    b = torch.empty_like(a)
    copied = 2 * size / bench.seconds(lambda: b.copy_(a), 10)
    n = 8192 if not bench.dry else 128
    x = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    product = 2 * n**3 / bench.seconds(lambda: x @ x, 10)
    facts = None if bench.dry else find_gpu(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1])
    peak = (facts.bandwidth_bytes_per_s, facts.fp16_flops_fp32_accumulate or 0.0) if facts else (0.0, 0.0)
    bench.clean()
    return [
        ["copy, GB/s (read + written)", f"{copied / 1e9:,.0f}", f"{peak[0] / 1e9:,.0f}"],
        ["bf16 matrix product, TFLOP/s", f"{product / 1e12:,.0f}", f"{peak[1] / 1e12:,.0f}"],
    ]


def speeds(bench: Bench, gpu: str, name: str, decoder: Decoder) -> list[dict[str, str]]:
    """Decode from graphs and prefill, as rows of the table of points."""
    rows = []
    with torch.inference_mode():
        for batch in BATCHES if not bench.dry else (1, 2):
            cache = decoder.cache(batch, CONTEXT if not bench.dry else 32)
            ids = torch.zeros((batch, 1), device=bench.device, dtype=torch.long)
            last = cache.shape[4] - 1
            step = bench.captured(lambda ids=ids, cache=cache, last=last: decoder.run(ids, cache, last))
            took = bench.seconds(step, 40 if not bench.dry else 2)
            rows.append(point(gpu, name, batch, f"ctx{last + 1}", decode=batch / took))
            del cache, step
            bench.clean()
        for length in PROMPTS if not bench.dry else (32,):
            ids = torch.zeros((1, length), device=bench.device, dtype=torch.long)
            step = bench.captured(lambda ids=ids: decoder.run(ids, None, 0))
            took = bench.seconds(step, 8 if not bench.dry else 2)
            del step
            bench.clean()
            rows.append(point(gpu, name, 1, f"pp{length}", prefill=length / took))
    return rows


def point(
    gpu: str, model: str, batch: int, test: str, *, decode: float | None = None, prefill: float | None = None
) -> dict[str, str]:
    return {
        "gpu": gpu,
        "n_gpu": "1",
        "link_parallel": "",
        "engine": f"torch {torch.__version__}, own decoder, CUDA graphs",
        "model": model,
        "quant": "BF16",
        "weights_gib": "",
        "batch": str(batch),
        "test": test,
        "prefill_tok_s": f"{prefill:.1f}" if prefill else "",
        "decode_tok_s": f"{decode:.2f}" if decode else "",
        "use": "test",
        "source": "benchmarks/real_gpu.py",
        "notes": time.strftime("%Y-%m-%d"),
    }


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def calibrated(out: Path, half: Sequence[dict[str, str]]) -> Constants:
    """What `sovereign calibrate --from` makes of half of the points."""
    import msgspec

    write(out / "half.csv", half)
    with tempfile.TemporaryDirectory() as home:
        environment = ours(Path(home))
        command = [
            sys.executable,
            "-m",
            "sovereign_ai",
            "calibrate",
            "--from",
            str(out / "half.csv"),
            "--json",
        ]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    (out / "half.csv").unlink()
    entry = json.loads(done.stdout)[0]
    return msgspec.convert(entry["constants"], Constants)


def compare(
    rows: Sequence[dict[str, str]], after: Constants, half: Sequence[dict[str, str]]
) -> list[SpeedRow]:
    before = constants_for("vllm")
    found = []
    for row in rows:
        fitted = row in half
        if row["decode_tok_s"]:
            one = decode_points([row])[0][0]
            old, new = (one.batch / calibration.seconds(c, one) for c in (before, after))
            found.append(
                SpeedRow(row["model"], f"decode, batch {one.batch}", one.tokens_per_s, old, new, fitted)
            )
        else:
            prompt = prompt_points([row])[0]
            stage = Stage(rank=prompt.rank, card=prompt.card)
            old, new = (
                prompt.length / performance.prefill_s(c, [stage], prompt.length) for c in (before, after)
            )
            what = f"prompt of {prompt.length:,}"
            found.append(SpeedRow(row["model"], what, prompt.tokens_per_s, old, new, fitted))
    return found


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def mean_error(rows: Sequence[SpeedRow], which: str) -> str:
    misses = [abs(getattr(row, which) / row.measured - 1) for row in rows]
    return f"{100 * statistics.mean(misses):.1f} %" if misses else "–"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--survey", action="store_true", help="inventory, tiers and doctor only")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.dry_run)
    _, facts = survey(options.out, options.dry_run)
    if options.survey:
        print(table("Facts", ("", "driver or measured", "catalog"), facts))
        return
    gpu = "RTX 3090" if options.dry_run else torch.cuda.get_device_name()
    weights: list[dict[str, str]] = [] if options.dry_run else overheads()
    points: list[dict[str, str]] = []
    tops = ceilings(bench)
    for name in MODELS if not options.dry_run else ("smollm2-135m",):
        known = find_shape(name)
        assert known is not None, name
        decoder, rows = weigh(bench, name, known.shape if not options.dry_run else TOY)
        weights += rows
        weights.append(weigh_graphs(bench, name, decoder))
        bench.clean()
        points += speeds(bench, gpu, name, decoder)
        del decoder
        bench.clean()
        print(f"{name} done", file=sys.stderr, flush=True)
    write(options.out / "points.csv", points)
    write(options.out / "memory.csv", weights)
    half = points[::2]
    after = calibrated(options.out, half)
    compared = compare(points, after, half)
    kept = [row for row in compared if not row.fitted]
    text = "\n".join(
        (
            f"{gpu}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n",
            table("Facts", ("", "driver or measured", "catalog"), [*facts, *tops]),
            table(
                "Memory, GiB",
                ("model", "what", "measured", "planner", "error"),
                [
                    [
                        r.model,
                        r.what,
                        f"{r.measured_bytes / GIB:.3f}",
                        f"{r.predicted_bytes / GIB:.3f}",
                        percent(r.error),
                    ]
                    for r in map(weighed, weights)
                ],
            ),
            table(
                "Speed, tokens/s",
                ("model", "what", "measured", "before", "error", "after", "error", ""),
                [
                    [
                        r.model,
                        r.what,
                        f"{r.measured:,.0f}",
                        f"{r.before:,.0f}",
                        percent(r.before / r.measured - 1),
                        f"{r.after:,.0f}",
                        percent(r.after / r.measured - 1),
                        "calibrated with" if r.fitted else "kept back",
                    ]
                    for r in compared
                ],
            ),
            f"Mean error on the rows kept back: {mean_error(kept, 'before')} before, "
            f"{mean_error(kept, 'after')} after.",
        )
    )
    (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
