"""`sovereign migrate compose`: a v1.0 stack → factory.yaml, with a report of every decision on the way."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sovereign_ai.config import load_factory
from sovereign_ai.console import Console
from sovereign_ai.errors import ConfigError, UsageError, disk_errors
from sovereign_ai.inventory import catalog_bandwidths, form_tiers, load_inventory
from sovereign_ai.migrate import Kind, Line, Migration, View, migrate

HEADINGS: tuple[tuple[Kind, str], ...] = (
    ("carried", "Carried over"),
    ("changed", "Changed, and why"),
    ("assumed", "Assumed: check these"),
    ("not_carried", "Not carried over, and what to do"),
)


def compose(console: Console, file: Path, inventory: Path | None, out: Path | None, *, force: bool) -> None:
    """Write factory.yaml to `out`, or show it; the report goes where the result does not.

    Raises UsageError where `out` is there already, ConfigError for a bad compose file and, after the report,
    where no model could be carried over.
    """
    _check_out(file, out, force=force)
    made = migrate(file, _view(inventory), folder=out.parent if out else None)
    if made.factory:
        _check(made)
    if out and made.factory:
        _save(out, made.factory)
    _show(console, made, out)
    if not made.factory:
        raise ConfigError(
            f"{file}: no model could be carried over", "the report above says why, and what to do"
        )


def _view(inventory: Path | None) -> View | None:
    if inventory is None:
        return None
    found = load_inventory(inventory)
    return View(found, form_tiers(found, (), catalog_bandwidths(found)))


def _check_out(file: Path, out: Path | None, *, force: bool) -> None:
    if out is None:
        return
    if out.is_dir():
        raise UsageError(f"{out} is a folder", f"name a file in it: {out / 'factory.yaml'}")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such folder", "make it first")
    if out.exists() and file.exists() and out.samefile(file):
        raise UsageError(f"{out} is the compose file itself", "it is never written to: choose another name")
    if out.exists() and not force:
        raise UsageError(f"{out} is there already", "choose another name, or replace it with --force")


def _check(made: Migration) -> None:
    """What is handed out must load. Raises ConfigError where it does not: better told now than later."""
    with tempfile.TemporaryDirectory(prefix="sovereign-migrate-") as folder:
        file = Path(folder) / "factory.yaml"
        file.write_text(made.factory, encoding="utf-8")
        load_factory(file)


def _save(out: Path, text: str) -> None:
    """Replace the file whole. Raises NoSpace, NoPermission, and UsageError for other refusals."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with disk_errors("saving the factory file", out):
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be saved there: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _show(console: Console, made: Migration, out: Path | None) -> None:
    if console.json:
        console.data(made)
        return
    if out is None:
        console.raw(made.factory)
    write = console.say if out else console.note
    for line in report_lines(made.report):
        write(line)
    if out and made.factory:
        console.note(f"saved to {out}")


def report_lines(report: Sequence[Line]) -> list[str]:
    """The report as a person reads it: by what became of things, in the order of the file."""
    lines: list[str] = []
    for kind, heading in HEADINGS:
        told = [line for line in report if line.kind == kind]
        if told:
            lines += [heading, *(text for line in told for text in _lines(line))]
    return lines


def _lines(line: Line) -> list[str]:
    service = f"{line.service}: " if line.service else ""
    return [f"  {line.where}  {service}{line.what}", *([f"    → {line.todo}"] if line.todo else [])]
