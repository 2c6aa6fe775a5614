"""A compose file in a folder of its own, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.config import Factory, ModelEntry, load_factory
from sovereign_ai.migrate import Migration, View, migrate

EXAMPLES = Path(__file__).parents[2] / "examples"


class Moved:
    """A migration with its factory.yaml loaded."""

    def __init__(self, made: Migration, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.text = "\n".join(f"{line.where} {line.what} {line.todo}" for line in made.report)

    @property
    def factory(self) -> Factory:
        file = self.folder / "factory.yaml"
        file.write_text(self.made.factory)
        return load_factory(file)

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """With `file:` sources as they are written, relative to the folder."""
        return self.factory.models if self.made.factory else ()

    @property
    def model(self) -> ModelEntry:
        (only,) = self.models
        return only

    def told(self, kind: str) -> list[str]:
        return [line.what for line in self.made.report if line.kind == kind]

    def line(self, kind: str, part: str) -> tuple[int, str]:
        """The line number and the text of the one line of that kind that has `part` in it."""
        (found,) = [one for one in self.made.report if one.kind == kind and part in one.what]
        return int(found.where.rpartition(":")[2]), f"{found.what} → {found.todo}"


Move = Callable[..., Moved]


@pytest.fixture
def move(tmp_path: Path) -> Move:
    """Write files, migrate docker-compose.yml; `files` are those beside it, by name."""

    def moved(text: str, view: View | None = None, **files: Any) -> Moved:
        for name, content in files.items():
            file = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        compose = tmp_path / "docker-compose.yml"
        compose.write_text(text)
        return Moved(migrate(compose, view), tmp_path)

    return moved


def service(text: str, name: str = "it") -> str:
    """A compose file with one service; `text` are its keys without indent."""
    lines = "\n".join(f"    {line}" for line in text.strip().splitlines())
    return f"services:\n  {name}:\n{lines}\n"
