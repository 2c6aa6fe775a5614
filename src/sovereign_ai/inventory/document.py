"""inventory.json: the inventory as a file that can be kept, compared, edited and planned for elsewhere."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sovereign_ai.errors import InventoryError, disk_errors
from sovereign_ai.inventory.checks import Problem, problems
from sovereign_ai.inventory.places import Places, Steps, find_places, read_steps, spell
from sovereign_ai.spec import Device, Inventory, Link, Node, Pcie

MAX_BYTES = 64 * 1024 * 1024
"""Of a file that is taken for an inventory: 16 cards take 16 KiB."""


def save_inventory(path: Path, inventory: Inventory) -> None:
    """Write the inventory whole or not at all: fields in their order, two spaces an indent.

    Raises NoSpace or NoPermission, and InventoryError where the folder is not there.
    """
    text = msgspec.json.format(msgspec.json.encode(inventory), indent=2) + b"\n"
    with _reachable(path, "writing the inventory"):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def load_inventory(path: Path) -> Inventory:
    """Read what `save_inventory` wrote, or a hand that followed it.

    Raises InventoryError for anything that is not an inventory, with file, line and JSON path.
    """
    text = _read(path)
    inventory = _decode(path, text)
    places = find_places(text)
    for steps, line in places.twice:
        where = f"{path}:{line} ({spell(steps)})"
        raise InventoryError(f"{where}: the key is given twice (first on line {places.line(steps)})")
    for problem in problems(inventory):
        raise _refusal(path, places, problem)
    return inventory


def _refusal(path: Path, places: Places, problem: Problem) -> InventoryError:
    other = f" (first {_at(path, places, problem.other)})" if problem.other is not None else ""
    return InventoryError(f"{_at(path, places, problem.steps)}: {problem.what}{other}", problem.hint)


def _at(path: Path, places: Places, steps: Steps) -> str:
    return f"{path}:{places.line(steps)} ({spell(steps)})" if steps else f"{path}:{places.line(steps)}"


@contextmanager
def _reachable(path: Path, doing: str) -> Iterator[None]:
    try:
        with disk_errors(doing, path):
            yield
    except FileNotFoundError as error:
        raise InventoryError(
            f"{path}: no such file or folder",
            "make one on the machine itself: sovereign inventory --save FILE",
        ) from error
    except (OSError, ValueError) as error:
        raise InventoryError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _read(path: Path) -> str:
    with _reachable(path, "reading the inventory"):
        if path.stat().st_size > MAX_BYTES:
            raise InventoryError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so no inventory")
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InventoryError(f"{path}:{line}: not UTF-8 text (byte {error.start})") from error


def _decode(path: Path, text: str) -> Inventory:
    try:
        return msgspec.json.decode(text, type=Inventory)
    except msgspec.ValidationError as error:
        raise _schema_error(path, text, str(error)) from error
    except msgspec.DecodeError as error:
        raise _syntax_error(path, text, str(error)) from error


def _syntax_error(path: Path, text: str, message: str) -> InventoryError:
    """`JSON is malformed: … (byte 120)` names the byte; a truncated text ends where it ends."""
    byte = re.search(r"\(byte (\d+)\)", message)
    data = text.encode()
    line = data.count(b"\n", 0, int(byte[1]) if byte else len(data.rstrip())) + 1
    problem = message.removeprefix("JSON is malformed: ").partition(" (byte")[0]
    return InventoryError(f"{path}:{line}: not valid JSON: {problem}", "fix the syntax at that line")


def _schema_error(path: Path, text: str, message: str) -> InventoryError:
    problem, _, where = message.partition(" - at `")
    steps = read_steps(where)
    if unknown := re.search(r"unknown field `(.*)`", problem):
        steps = (*steps, unknown[1])
        hint = _known_fields(steps)
    else:
        hint = "docs/reference/inventory.md has the fields, their types and units"
    try:
        at = _at(path, find_places(text), steps)
    except (IndexError, ValueError):
        # The text breaks off or goes wrong behind the place where the schema was left.
        at = f"{path} ({spell(steps)})"
    return InventoryError(f"{at}: {problem[:1].lower()}{problem[1:]}", hint)


def _known_fields(steps: Steps) -> str:
    """The field that was probably meant by the last of `steps`, or all that exist there."""
    kinds: dict[str | int, type[msgspec.Struct]]
    kinds = {"nodes": Node, "devices": Device, "pcie": Pcie, "links": Link}
    kind = next((kinds[step] for step in reversed(steps[:-1]) if step in kinds), Inventory)
    known = [field.name for field in msgspec.structs.fields(kind)]
    near = difflib.get_close_matches(str(steps[-1]), known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"fields there: {', '.join(known)}"
