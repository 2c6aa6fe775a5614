"""`sovereign models quantize`: a stored model becomes a smaller variant of itself, beside it in the store."""

from __future__ import annotations

import difflib
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec

from sovereign_ai.catalog.formats import format_facts
from sovereign_ai.config import Paths
from sovereign_ai.console import Console, human_bytes
from sovereign_ai.engines import quantizer
from sovereign_ai.engines.calibration import SAMPLES_ENOUGH, Calibration, read_calibration
from sovereign_ai.engines.quantizer import SAMPLE_TOKENS, SCHEMES, Job, Made, Scheme
from sovereign_ai.errors import (
    BadModelFile,
    EngineUnavailable,
    InventoryError,
    StoreError,
    UnsupportedModel,
    UsageError,
)
from sovereign_ai.inventory import take_inventory
from sovereign_ai.spec import Shape
from sovereign_ai.store import Store
from sovereign_ai.store.inspect import INDEX_NAME, Facts, inspect, weight_files
from sovereign_ai.store.install import stored_files
from sovereign_ai.store.layout import regular_files
from sovereign_ai.store.manifest import Manifest, Quantization

SPARE_BYTES = 64 << 20
"""Of disk, beside the weights: tokenizer, log, what else the library writes."""
GROUPS_MARGIN = 1.1
"""Scales of groups of 32 take a tenth more than those of 128 that a format is counted with."""
LIBRARIES_BYTES = 700 << 20
"""Memory of the process beside the model: 508 to 686 MB measured with SmolLM2-135M."""
HESSIANS = 2
"""GPTQ keeps the matrix of each layer's inputs and works on a copy of it, in float32."""
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
"""Files of a model folder that hold weights which are not taken over."""


class _Wanted(NamedTuple):
    """What is to be made: `base` as it is stored, `facts` as its files say now."""

    base: Manifest
    facts: Facts
    scheme: Scheme
    calibration: Calibration | None

    @property
    def version(self) -> str:
        return f"{self.base.version}-{self.scheme}"

    @property
    def digest(self) -> str | None:
        return self.calibration.sha256 if self.calibration else None


def quantize(console: Console, paths: Paths, name: str, scheme: str, calibration: Path | None) -> None:
    """Make the variant `<version>-<scheme>` of a stored model, unless it is there already.

    Raises UsageError, StoreError's branches, NoSpace, and EngineError's for the environment and the library.
    """
    store = Store(paths.models, paths.cache)
    base = _base(store, name)
    wanted = _wanted(store, base, _scheme(scheme), calibration)
    if made := _there(store, wanted):
        _tell(console, made, base, new=False)
        return
    _check_room(store, wanted)
    _say_before(console, wanted)
    python = quantizer.python_of(paths, console)
    with store.writing(console):
        # Another process may have made it while this one waited.
        made = _there(store, wanted) or _make(store, wanted, python, console)
    _tell(console, made, base, new=True)


def _scheme(text: str) -> Scheme:
    for scheme in SCHEMES:
        if scheme == text:
            return scheme
    raise UsageError(f"`{text}` is not a scheme of quantization", f"known: {', '.join(SCHEMES)}")


def _base(store: Store, name: str) -> Manifest:
    """The version to quantize: the one that new deployments take, else the newest."""
    stored = store.versions(name)
    versions = [one for one in stored if one.quantization is None]
    if stored and not versions:
        raise StoreError(
            f"only quantized variants of {name} are stored, nothing that they could be made from",
            "bring the model in again: `sovereign up` does, where factory.yaml names it",
        )
    if not versions:
        known = sorted({manifest.name for manifest in store.readable()})
        near = difflib.get_close_matches(name, known, n=3) or known[:10]
        hint = f"stored: {', '.join(near)}" if near else "the store is empty: `sovereign up` brings models in"
        raise StoreError(f"there is no model `{name}` in {store.models}", hint)
    current = store.current(name)
    return next((one for one in versions if one.version == current), versions[-1])


def _wanted(store: Store, base: Manifest, scheme: Scheme, calibration: Path | None) -> _Wanted:
    facts = inspect(store.folder(base), code=base.remote_code)
    if reason := _unsupported(base, facts):
        raise UnsupportedModel(f"{base.name} {base.version} cannot be quantized: {reason}")
    if calibration and scheme == "fp8":
        raise UsageError("fp8 needs no calibration data", "leave --calibration out")
    if calibration is None and scheme == "w4a16":
        raise UsageError(
            "w4a16 needs calibration data: 4 bits are too few to round without it",
            "--calibration FILE: text like that which the model will see, or JSON lines (.jsonl) with "
            "`text` or `messages`",
        )
    return _Wanted(base, facts, scheme, read_calibration(calibration) if calibration else None)


def _unsupported(base: Manifest, facts: Facts) -> str:
    """Why a model cannot be quantized; empty where it can."""
    shape = facts.shape
    if facts.format is not None:
        return f"it is quantized already ({facts.format})"
    if base.remote_code:
        return "it brings code of its own, which is not run for this"
    if base.task != "chat" or not shape.architecture.endswith("ForCausalLM"):
        return f"{shape.architecture} is not a model that generates text"
    if shape.experts:
        return "mixtures of experts are not supported in this version"
    return "models that read images are not supported in this version" if shape.vision else ""


def _there(store: Store, wanted: _Wanted) -> Manifest | None:
    """The variant, where it is stored. Raises StoreError where it was made from other calibration data."""
    found = [one for one in store.versions(wanted.base.name) if one.version == wanted.version]
    if not found:
        return None
    how = found[0].quantization
    if how and how.calibration_sha256 == wanted.digest:
        return found[0]
    made = f"from {how.calibration}" if how and how.calibration else "without calibration data"
    raise StoreError(
        f"{wanted.base.name} {wanted.version} is there already, made {made}",
        "a stored version is never changed: remove it first (`sovereign models remove`)",
    )


def _weights_bytes(shape: Shape, scheme: Scheme) -> int:
    """At most, of the variant: linear layers in the scheme's width, embedding and head at 16 bit."""
    linear = shape.parameters - shape.embedding_parameters
    each = format_facts(scheme).bytes_per_parameter * GROUPS_MARGIN
    return int(linear * each) + 2 * shape.embedding_parameters


def memory_bytes(facts: Facts, scheme: Scheme, *, samples: int) -> int:
    """What the library needs: the model as it is stored, its variant, and with calibration data the matrices
    of one layer's inputs (columns squared, float32) and the activations of all samples, before and after."""
    shape = facts.shape
    taken = facts.weights_bytes + _weights_bytes(shape, scheme) + LIBRARIES_BYTES
    if not samples:
        return taken
    columns = 6 * shape.hidden**2 + shape.intermediate**2
    return taken + 4 * (HESSIANS * columns + 2 * samples * SAMPLE_TOKENS * shape.hidden)


def _check_room(store: Store, wanted: _Wanted) -> None:
    doing = f"quantizing {wanted.base.name} to {wanted.scheme}"
    store.require(store.models, _weights_bytes(wanted.facts.shape, wanted.scheme) + SPARE_BYTES, doing)
    samples = len(wanted.calibration.samples) if wanted.calibration else 0
    needed = memory_bytes(wanted.facts, wanted.scheme, samples=samples)
    free = take_inventory(cpu_only=True).nodes[0].memory_free_bytes
    if free < needed:
        raise EngineUnavailable(
            f"{doing} needs about {human_bytes(needed)} of memory, {human_bytes(free)} are free",
            "stop what else runs (`sovereign down`), or quantize on a machine with more memory",
        )


def _say_before(console: Console, wanted: _Wanted) -> None:
    """What is better known before the work than after it."""
    if (warning := quantizer.ON_CPU[wanted.scheme]) and not _has_gpus():
        console.note(warning)
    if wanted.calibration and len(wanted.calibration.samples) < SAMPLES_ENOUGH:
        console.note(
            f"{wanted.calibration.file} makes {len(wanted.calibration.samples)} samples; with "
            f"{SAMPLES_ENOUGH} or more the result is better"
        )


def _has_gpus() -> bool:
    """True where a broken driver leaves it open: what is said of CPUs is then not to the point."""
    try:
        return any(device.kind == "gpu" for device in take_inventory().devices)
    except InventoryError:
        return True


def _make(store: Store, wanted: _Wanted, python: Path, console: Console) -> Manifest:
    base, folder = wanted.base, store.folder(wanted.base)
    with console.progress(f"Checking {base.name} {base.version}", total=base.total_bytes) as progress:
        store.verify(base, progress)
    with store.staging(base.name) as staging:
        samples = wanted.calibration.samples if wanted.calibration else ()
        job = Job(folder, staging / "made", wanted.scheme, samples)
        total = quantizer.steps(wanted.facts.shape.layers, calibrated=bool(samples))
        label = f"Quantizing {base.name} {base.version} to {wanted.scheme}"
        with console.progress(label, total=total, unit="steps") as progress:
            made = quantizer.run(python, job, staging, progress)
            progress.update(total)
        target = staging / "model"
        _assemble(folder, job.out, made, target)
        return store.install(target, _describe(wanted, made, target, console))


def _assemble(base: Path, made: Path, how: Made, target: Path) -> None:
    """The library's weights among the base's own files: tokenizer, template and settings are not rewritten,
    and the store keeps them once."""
    target.mkdir()
    for path in (*weight_files(made), made / INDEX_NAME):
        if path.exists():
            path.rename(target / path.name)
    for name, path in regular_files(base).items():
        if path.suffix not in OTHER_WEIGHTS and name not in (INDEX_NAME, "manifest.json", "config.json"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    config = msgspec.json.decode((base / "config.json").read_bytes())
    said = msgspec.json.decode((made / "config.json").read_bytes())
    config["quantization_config"] = said["quantization_config"]
    config["dtype" if "dtype" in config else "torch_dtype"] = how.dtype
    (target / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")


def _describe(wanted: _Wanted, made: Made, folder: Path, console: Console) -> Manifest:
    facts = _checked(wanted, folder)
    changed = {
        "version": wanted.version,
        "weights_bytes": facts.weights_bytes,
        "dtype": facts.dtype,
        "shape": facts.shape,
        "format": facts.format,
    }
    calibration = wanted.calibration
    return msgspec.structs.replace(
        wanted.base,
        model=msgspec.structs.replace(wanted.base.model, **changed),
        created=int(time.time()),
        tools={**wanted.base.tools, "sovereign-ai": metadata.version("sovereign-ai")},
        files=stored_files(folder, console),
        quantization=Quantization(
            scheme=wanted.scheme,
            base=wanted.base.version,
            tools=made.tools,
            ignored=made.ignored,
            group_size=made.group_size,
            calibration=calibration.file if calibration else None,
            calibration_sha256=wanted.digest,
            calibration_samples=made.samples,
        ),
    )


def _checked(wanted: _Wanted, folder: Path) -> Facts:
    """What the new files say of themselves: the same model, in the format that was asked for."""
    facts = inspect(folder)
    if facts.format != wanted.scheme or facts.shape != wanted.facts.shape:
        raise BadModelFile(
            f"quantizing {wanted.base.name} to {wanted.scheme} made something else: {facts.format}, "
            f"{facts.shape.parameters} parameters where there were {wanted.facts.shape.parameters}"
        )
    return facts


def _tell(console: Console, made: Manifest, base: Manifest, *, new: bool) -> None:
    if console.json:
        console.data(made)
        return
    size, before = human_bytes(made.model.weights_bytes), human_bytes(base.model.weights_bytes)
    done = "stored" if new else "is there already"
    console.say(f"{made.name} {made.version}: {done}, {size} of weights where {base.version} has {before}")
