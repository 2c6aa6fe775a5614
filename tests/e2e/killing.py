"""Run one action on a store again and again, killed with SIGKILL one step later each time, and look at what
is left. Run as a program: PYTHON killing.py FOLDER ACTION; writes how many steps there were.

A step is anything that changes the file system (by Python's audit events) and every report of progress. Each
run is a fork of this process, which has imported everything already.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sovereign_ai.config import ModelEntry
from sovereign_ai.console import Console, Progress, Silent
from sovereign_ai.store import Manifest, Options, Store, convert, ensure
from sovereign_ai.store.archive import export, import_archive

CHANGES = frozenset(
    {
        "os.rename",
        "os.link",
        "os.symlink",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.chmod",
        "os.truncate",
        "tempfile.mkdtemp",
    }
)
VISIBLE = frozenset({".lock", "kept", "there", "pulled", "imported"})
assert convert  # imported before the first fork


class Steps:
    """Kills this process at step `at`; -1 never."""

    def __init__(self, at: int) -> None:
        self.at, self.done = at, 0

    def step(self) -> None:
        if self.done == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.done += 1

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event in CHANGES:
            self.step()


class Counting(Console):
    """Progress counts as steps."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(json=True)
        self._steps = steps

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def progress(
        self, label: str, *, total: int | None = None, unit: str = "bytes", even: bool = True
    ) -> Iterator[Progress]:
        steps = self._steps

        class Reported:
            def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
                steps.step()

        yield Reported()


def entry(name: str, path: Path) -> ModelEntry:
    return ModelEntry(name=name, source=f"file:{path}")


Action = Callable[[Store, Path, Console], None]


def pull(store: Store, folder: Path, console: Console) -> None:
    ensure(store, entry("pulled", folder / "minilm"), console)


def pull_hub(store: Store, folder: Path, console: Console) -> None:
    ensure(store, ModelEntry(name="pulled", source="hf:tiny/MiniLM"), console)


def convert_gguf(store: Store, folder: Path, console: Console) -> None:
    ensure(store, entry("pulled", folder / "tiny.gguf"), console, Options(dtype="bfloat16"))


def import_tar(store: Store, folder: Path, console: Console) -> None:
    import_archive(store, folder / "m.tar", console, code=frozenset())


def remove(store: Store, folder: Path, console: Console) -> None:
    with store.writing(console):
        for manifest in store.versions("there"):
            store.remove(manifest)


def export_tar(store: Store, folder: Path, console: Console) -> None:
    export(store, store.versions("kept")[0], folder / "out.tar", console, force=True)


ACTIONS: dict[str, Action] = {
    "pull": pull,
    "hub": pull_hub,
    "convert": convert_gguf,
    "import": import_tar,
    "remove": remove,
    "export": export_tar,
}


def prepare(folder: Path) -> Store:
    """A store with a model of two versions, and one that no action touches."""
    store = Store(folder / "home" / "models", folder / "home" / "cache")
    console = Console(json=True)
    for name in ("kept", "there"):
        ensure(store, entry(name, folder / "minilm"), console)
    ensure(store, entry("there", folder / "tiny.gguf"), console)
    return store


def look(store: Store, kept: Manifest) -> None:
    """What `verify` would say, and that nothing half-done is in sight."""
    assert store.damaged() == ()
    for manifest in store.list():
        store.verify(manifest, Silent())
    assert store.versions("kept") == (kept,)
    assert store.current("kept") == kept.version
    for path in store.models.iterdir():
        assert path.name in (".lock", "kept", "there", "pulled", "imported") or path.name.startswith(
            ".partial-"
        )
    for path in store.models.glob("[!.]*/*"):
        hidden = path.name.startswith(".current-")
        assert hidden or path.name == "current" or (path / "manifest.json").is_file(), path


def killed_at(action: Action, store: Store, folder: Path, at: int) -> bool:
    """Whether the action was killed before it had ended."""
    child = os.fork()
    if child == 0:
        steps = Steps(at)
        sys.addaudithook(steps.hook)
        action(store, folder, Counting(steps))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def main() -> None:
    folder, action = Path(sys.argv[1]), ACTIONS[sys.argv[2]]
    store = prepare(folder)
    kept = store.versions("kept")[0]
    shutil.copytree(folder / "home", folder / "template", symlinks=True)
    at = 0
    while killed_at(action, store, folder, at):
        look(store, kept)
        action(store, folder, Console(json=True))  # the next one cleans up and ends well
        look(store, kept)
        with store.writing(Console(json=True)):  # any writer cleans up
            assert not list(store.models.glob(".partial-*"))
        shutil.rmtree(folder / "home")
        shutil.copytree(folder / "template", folder / "home", symlinks=True)
        at += 1
    sys.stdout.write(f"{at}\n")


if __name__ == "__main__":
    main()
