"""Is the drive there, and does it hold what was planned? Runs in a pod before the engine, on the standard
library alone, with the path of checks.json as its argument.

Ends with 0, or with 1 and one line that says what is wrong and what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

BLOCK = 1 << 22


def problem(checks: dict[str, Any]) -> str | None:
    root = checks["root"]
    sentinel = os.path.join(root, checks["sentinel"])
    if not os.path.exists(sentinel):
        return f"{sentinel} is missing: the drive is not mounted on this node (or: touch {sentinel})"
    for model in checks["models"]:
        folder = os.path.join(root, "models", model["name"], model["version"])
        if not os.path.isdir(folder):
            return f"{folder} is missing: pull the model on this node"
        files = model["files"] or listed(folder)
        if not files:
            return f"{folder} has no manifest.json: bring the model in with `sovereign models pull`"
        for path, (size, digest) in sorted(files.items()):
            wrong = different(os.path.join(folder, path), size, digest)
            if wrong:
                return wrong
    return None


def listed(folder: str) -> dict[str, Any]:
    """What the model's own manifest says of its files: path -> size and digest."""
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            return {one["path"]: (one["bytes"], one["sha256"]) for one in json.load(file)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def different(path: str, size: int, digest: str) -> str | None:
    try:
        found = os.path.getsize(path)
        if found != size:
            return f"{path} has {found} bytes instead of {size}: pull the model again"
        hasher = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                hasher.update(block)
    except OSError as error:
        return f"{path} cannot be read: {error}"
    if hasher.hexdigest() != digest:
        return f"{path} is damaged (SHA-256 {hasher.hexdigest()[:12]}...): pull the model again"
    print(f"{path}: {size} bytes, as they should be", flush=True)
    return None


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        found = problem(json.load(file))
    if found:
        print(found, file=sys.stderr)
        sys.exit(1)
