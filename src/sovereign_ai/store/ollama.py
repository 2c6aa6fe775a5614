"""Models that Ollama has on this machine: `ollama:NAME[:TAG]`. Its folder is only read; Ollama need not run.

Its layout (github.com/ollama/ollama, `server/manifest.go` and `types/model/name.go`): a JSON manifest at
manifests/HOST/NAMESPACE/NAME/TAG lists layers by media type and digest, which are files blobs/sha256-HEX.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sovereign_ai.config import ModelEntry, environment
from sovereign_ai.console import Console
from sovereign_ai.errors import DigestMismatch, SourceError, UnsupportedModel, disk_errors
from sovereign_ai.store.digest import sha256_files
from sovereign_ai.store.layout import Store
from sovereign_ai.store.manifest import Origin
from sovereign_ai.store.material import Material
from sovereign_ai.store.source import canonical, ollama_model

VERSION_DIGITS = 12
MODEL_LAYER = "application/vnd.ollama.image.model"
UNSUPPORTED_LAYERS = {
    "application/vnd.ollama.image.adapter": "an adapter (LoRA), which is not merged",
    "application/vnd.ollama.image.projector": "a vision part, which cannot be converted",
}
MAX_MANIFEST_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class _Layer(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Manifest(msgspec.Struct):
    layers: tuple[_Layer, ...]


@contextmanager
def material(store: Store, entry: ModelEntry, staging: Path, console: Console) -> Iterator[Material]:
    """The GGUF of the model, read where it is, after its digest was compared with the one in its name.

    Raises SourceError where Ollama has no such model, UnsupportedModel for what is more than weights.
    """
    blob, digest = _weights(entry.source)
    size = blob.stat().st_size
    with (
        disk_errors(f"reading {blob}", blob),
        console.progress(f"Checking {blob.name}", total=size) as progress,
    ):
        actual = sha256_files([blob], progress)[0]
    if actual != digest:
        raise DigestMismatch(
            f"{blob}: SHA-256 is {actual}, its name says {digest}", "let Ollama pull it again"
        )
    source = canonical(entry.source)
    origin = Origin(file=str(blob), bytes=size, sha256=digest, stamp=digest)
    yield Material(digest[:VERSION_DIGITS], source, origin, None, blob)


def digest_of(source: str) -> str:
    """The SHA-256 of the weights that the tag means now. Raises SourceError, UnsupportedModel."""
    return _weights(source)[1]


def stamp(source: str) -> str | None:
    """The same; None where Ollama has it no more."""
    try:
        return digest_of(source)
    except (SourceError, UnsupportedModel):
        return None


def _weights(source: str) -> tuple[Path, str]:
    """The blob that holds the weights, and its digest."""
    root, path = _manifest_path(source)
    layers = _read(path).layers
    for layer in layers:
        if layer.media_type in UNSUPPORTED_LAYERS:
            raise UnsupportedModel(f"{source}: has {UNSUPPORTED_LAYERS[layer.media_type]}")
    models = [layer for layer in layers if layer.media_type == MODEL_LAYER]
    if len(models) != 1:
        raise UnsupportedModel(f"{path}: lists {len(models)} files of weights, expected one")
    digest = _DIGEST.fullmatch(models[0].digest)
    if digest is None:
        raise UnsupportedModel(f"{path}: `{models[0].digest}` is not a digest")
    blob = root / "blobs" / f"sha256-{digest[1]}"
    if not blob.is_file():
        raise SourceError(
            f"{blob}: missing, {path} names it", f"run: ollama pull {source.removeprefix('ollama:')}"
        )
    return blob, digest[1]


def _manifest_path(source: str) -> tuple[Path, Path]:
    wanted = ollama_model(source)
    folders = model_folders(environment())
    for root in folders:
        path = root / "manifests" / wanted.host / wanted.namespace / wanted.name / wanted.tag
        if path.is_file():
            return root, path
    have = sorted({name for root in folders for name in _names(root)})
    hint = (
        f"it has {', '.join(have[:8])}" if have else "set OLLAMA_MODELS to the folder that holds its models"
    )
    looked = ", ".join(map(str, folders))
    raise SourceError(
        f"Ollama has no model `{source.removeprefix('ollama:')}` here (looked in {looked})", hint
    )


def model_folders(variables: Mapping[str, str]) -> list[Path]:
    """Where Ollama keeps models: OLLAMA_MODELS, else the user's folder and the one of its system service."""
    if chosen := variables.get("OLLAMA_MODELS"):
        return [Path(chosen)]
    home = Path(variables.get("HOME") or "/")
    return [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]


def _names(root: Path) -> Iterator[str]:
    """The models below `root`, as a person names them."""
    manifests = root / "manifests"
    for path in manifests.glob("*/*/*/*"):
        host, namespace, name, tag = path.relative_to(manifests).parts
        yield canonical(f"ollama:{host}/{namespace}/{name}:{tag}").removeprefix("ollama:")


def _read(path: Path) -> _Manifest:
    try:
        with disk_errors("reading Ollama's manifest", path), path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_MANIFEST_BYTES), type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnsupportedModel(f"{path}: not a manifest of Ollama's: {error}") from error
