"""Which Python an engine environment is made with.

Triton's Python stub links against the shared libpython of one minor version, and the lock covers some minor
versions only, so the interpreter that runs `sovereign` need not be the one that runs the engine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from sovereign_ai.errors import EngineUnavailable

PROBE = """
import json, sys, sysconfig
folders = [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib", sysconfig.get_config_var("LIBPL")]
print(json.dumps({"minor": "%d.%d" % sys.version_info[:2], "full": sys.version.split()[0],
                  "library": sysconfig.get_config_var("INSTSONAME"), "folders": folders}))
"""

PROBE_TIMEOUT_S = 20


class Interpreter(msgspec.Struct, frozen=True):
    """A Python executable, its version and the folder of its shared libpython."""

    executable: str
    minor: str
    version: str
    library_folder: str


def base_executable() -> Path:
    """The interpreter behind the virtual environment this process runs in."""
    return Path(getattr(sys, "_base_executable", sys.executable))


def find_interpreter(minors: Sequence[str]) -> Interpreter:
    """The first usable Python of one of the given minor versions, `minors` in order of preference.

    Raises EngineUnavailable that says what was looked at and why each was no use.
    """
    refused: list[str] = []
    found: dict[str, Interpreter] = {}
    for executable in _candidates(minors):
        result = probe(executable)
        if isinstance(result, Interpreter) and result.minor in minors:
            found.setdefault(result.minor, result)
        else:
            reason = result if isinstance(result, str) else f"is Python {result.minor}"
            refused.append(f"{executable}: {reason}")
        if minors[0] in found:
            break
    for minor in minors:
        if minor in found:
            return found[minor]
    raise EngineUnavailable(
        f"the engine needs Python {' or '.join(minors)} with a shared libpython; " + "; ".join(refused),
        f"install one (Debian, Ubuntu: `apt-get install libpython{minors[0]} python{minors[0]}-venv`)",
    )


def _candidates(minors: Sequence[str]) -> Iterator[Path]:
    seen: set[Path] = set()
    names = [str(base_executable()), *(f"python{minor}" for minor in minors), "/usr/bin/python3"]
    for name in names:
        path = shutil.which(name)
        if path and Path(path).resolve() not in seen:
            seen.add(Path(path).resolve())
            yield Path(path)


def probe(executable: Path) -> Interpreter | str:
    """What a Python says of itself; a text with the reason where it is no use."""
    try:
        done = subprocess.run(
            [str(executable), "-I", "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=True,
        )
        facts = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"does not answer ({type(error).__name__})"
    for folder in facts["folders"]:
        if folder and facts["library"] and (Path(folder) / facts["library"]).is_file():
            return Interpreter(str(executable), facts["minor"], facts["full"], folder)
    return f"has no shared libpython{facts['minor']}"
