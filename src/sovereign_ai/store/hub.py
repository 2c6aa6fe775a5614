"""Models from a hub that speaks Hugging Face's protocol: `hf:ORG/NAME[@REVISION]`.

The one place that imports huggingface_hub. The library asks the questions and moves the bytes; which files
are taken, where they wait, and whether they are what the hub says they are is decided here. The revision is
pinned to its commit first. Files wait in the cache under the name of their digest, so what was downloaded is
never downloaded again: not after Ctrl-C, not after a lost network, not for a newer commit with the same
weights.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, constants, errors
from huggingface_hub import logging as hub_logging
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]

from sovereign_ai import __version__
from sovereign_ai.config import ModelEntry, environment
from sovereign_ai.console import Console, Progress
from sovereign_ai.errors import DigestMismatch, SourceError, UnsupportedModel
from sovereign_ai.store.contents import Contents, choose
from sovereign_ai.store.layout import Store, writer_lock
from sovereign_ai.store.manifest import Origin
from sovereign_ai.store.material import MODEL_FOLDER, SOURCE_FOLDER, Material
from sovereign_ai.store.source import HubModel, hub_model

DEFAULT_ENDPOINT = "https://huggingface.co"
COMMIT_DIGITS = 12
"""Of the commit make the version: 48 bits, no collision among a person's models."""
TRIES = 5
"""How often a file is tried again after the network failed without a byte arriving."""
CHUNK_BYTES = 1 << 20
"""Written to disk at a time: the library's own 10 MB would be lost at each interruption."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 8.0
MAX_FILES = 10_000
PARTIAL_SUFFIX = ".partial"
_YES = frozenset({"1", "on", "yes", "true"})


class HubFile(NamedTuple):
    """One file of a commit. `sha256` for files that the hub keeps apart (weights), else `blob`, git's
    SHA-1."""

    path: PurePosixPath
    bytes: int
    sha256: str | None
    blob: str | None

    @property
    def digest(self) -> str:
        return self.sha256 or self.blob or ""


class Snapshot(NamedTuple):
    """What a revision means now."""

    commit: str
    license: str | None
    files: dict[PurePosixPath, HubFile]


class _Hub(NamedTuple):
    """Where and as whom to ask. The token is only ever sent to `endpoint`."""

    endpoint: str
    token: str | None

    @property
    def headers(self) -> dict[str, str]:
        return build_hf_headers(token=self.token or False, user_agent=f"sovereign-ai/{__version__}")

    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token or False)

    def url(self, repo: str, commit: str, path: PurePosixPath) -> str:
        return huggingface_hub.hf_hub_url(repo, str(path), revision=commit, endpoint=self.endpoint)


@contextmanager
def material(store: Store, entry: ModelEntry, staging: Path, console: Console) -> Iterator[Material]:
    """The model's files of one commit, downloaded into the cache and linked into `staging`.

    What was downloaded is kept until the model is installed. Raises SourceError where the hub cannot be
    reached or refuses, UnsupportedModel where there is no model, DigestMismatch for a file that is not what
    the hub promised, NoSpace.
    """
    wanted, hub = hub_model(entry.source), _connect()
    snapshot = _snapshot(hub, wanted)
    gguf = PurePosixPath(wanted.file) if wanted.file else None
    contents = choose(snapshot.files, entry.source, code=entry.remote_code, gguf=gguf)
    files = [snapshot.files[path] for path in contents.files]
    waiting = store.downloads / "hub"
    with writer_lock(store.downloads, console):
        waiting.mkdir(exist_ok=True)
        _require(store, waiting, files, entry.source)
        _download(hub, wanted.repo, snapshot.commit, files, waiting, console)
        folder = staging / (SOURCE_FOLDER if contents.gguf else MODEL_FOLDER)
        _place(contents, files, waiting, folder)
        yield Material(
            snapshot.commit[:COMMIT_DIGITS],
            entry.source,
            _origin(wanted, snapshot.commit, files),
            snapshot.license,
            folder / contents.gguf.name if contents.gguf else None,
        )
        for file in files:
            (waiting / file.digest).unlink(missing_ok=True)


def commit_of(source: str) -> str:
    """The commit that a source means now. Raises SourceError."""
    return _snapshot(_connect(), hub_model(source)).commit


def _connect() -> _Hub:
    variables = environment()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if variables.get(name, "").lower() in _YES:
            raise SourceError(
                f"{name} is set: no hub is asked",
                "unset it, or bring the model in from a file: `sovereign models import`, file:PATH",
            )
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    # Its retries are told by us, in one line each.
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    endpoint = (variables.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    return _Hub(endpoint, variables.get("HF_TOKEN") or huggingface_hub.get_token())


def _snapshot(hub: _Hub, wanted: HubModel) -> Snapshot:
    with _hub_errors(hub, wanted):
        found = hub.api().model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    commit, siblings = found.sha, found.siblings or []
    if not _hex(commit, 40) or len(siblings) > MAX_FILES:
        raise SourceError(f"{hub.endpoint}: says nothing usable of {wanted.repo}", "check HF_ENDPOINT")
    files = {PurePosixPath(one.rfilename): _file(one) for one in siblings}
    return Snapshot(str(commit), _license(found), {path: file for path, file in files.items() if file.digest})


def _file(sibling: Any) -> HubFile:
    """Digests become file names: what is not hexadecimal is dropped, and the file with it."""
    large = sibling.lfs
    return HubFile(
        PurePosixPath(sibling.rfilename),
        int((large.size if large else sibling.size) or 0),
        _hex(large.sha256, 64) if large else None,
        None if large else _hex(sibling.blob_id, 40),
    )


def _hex(text: object, digits: int) -> str | None:
    sound = isinstance(text, str) and len(text) == digits and not set(text) - set("0123456789abcdef")
    return str(text) if sound else None


def _license(found: Any) -> str | None:
    tags = [tag for tag in found.tags or [] if isinstance(tag, str) and tag.startswith("license:")]
    return tags[0].removeprefix("license:") if tags else None


def _require(store: Store, waiting: Path, files: list[HubFile], source: str) -> None:
    here = sum(_waiting_bytes(waiting, file) for file in files)
    store.require(waiting, sum(file.bytes for file in files) - here, f"downloading {source}")


def _waiting_bytes(waiting: Path, file: HubFile) -> int:
    for path in (waiting / file.digest, waiting / f"{file.digest}{PARTIAL_SUFFIX}"):
        if path.exists():
            return min(path.stat().st_size, file.bytes)
    return 0


def _download(
    hub: _Hub, repo: str, commit: str, files: list[HubFile], waiting: Path, console: Console
) -> None:
    """All files with one progress, small ones first: what is wrong with a config shows before the weights are
    here. A file has its final name only once its digest is right."""
    done = 0
    with console.progress(f"Downloading {repo}", total=sum(file.bytes for file in files)) as progress:
        for file in sorted(files, key=lambda file: file.bytes):
            meter = _Meter(progress, done, file.path.name)
            if not (waiting / file.digest).exists():
                partial = waiting / f"{file.digest}{PARTIAL_SUFFIX}"
                with _hub_errors(hub, HubModel(repo, commit)):
                    _fetch(hub, hub.url(repo, commit, file.path), file, partial, meter, console)
                _check(partial, file, hub.endpoint)
                partial.rename(waiting / file.digest)
            done += file.bytes
            progress.update(done)


class _Meter:
    """Progress of one file among several."""

    def __init__(self, progress: Progress, before: int, name: str) -> None:
        self._progress, self._before, self._name = progress, before, name

    def update(self, position: int) -> None:
        self._progress.update(self._before + position, note=self._name)


class _Target:
    """The partial file, as the library wants to write to it: position is progress."""

    def __init__(self, file: IO[bytes], meter: _Meter) -> None:
        self._file, self._meter = file, meter

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._meter.update(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _fetch(hub: _Hub, url: str, file: HubFile, partial: Path, meter: _Meter, console: Console) -> None:
    """Download to `partial`, going on where it ends. The library tries again by itself while bytes arrive;
    what it lets out (a connection reset, a server in trouble) is tried again here, unless nothing moves."""
    failures, wait = 0, FIRST_WAIT_S
    while True:
        before = _trim(partial, file.bytes)
        try:
            with partial.open("ab") as out:
                target: Any = _Target(out, meter)
                http_get(url, target, resume_size=before, headers=hub.headers, expected_size=file.bytes)
            return
        except (httpx2.TransportError, errors.HfHubHTTPError, OSError) as error:
            if not _may_pass(error):
                raise
            moved = partial.exists() and partial.stat().st_size > before
            failures, wait = (0, FIRST_WAIT_S) if moved else (failures + 1, min(2 * wait, LONGEST_WAIT_S))
            if failures >= TRIES:
                raise
            console.note(f"{file.path}: {_words(error)}; going on in {wait:.0f} s")
            time.sleep(wait)


def _trim(partial: Path, size: int) -> int:
    """Bytes to go on from: none where there are more than the file has."""
    here = partial.stat().st_size if partial.exists() else 0
    if here > size:
        partial.unlink()
        return 0
    return here


def _may_pass(error: Exception) -> bool:
    """Whether trying again can help: the network, a busy server, bytes that are missing."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    # An OSError with a number is the system's: a full disk, no permission.
    return not (isinstance(error, OSError) and error.errno is not None)


def _words(error: Exception) -> str:
    if isinstance(error, errors.HfHubHTTPError):
        return f"the server answers {error.response.status_code}"
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__


def _check(partial: Path, file: HubFile, endpoint: str) -> None:
    """Compare a download with the digest that the hub states; a wrong one is deleted."""
    actual = _sha256(partial) if file.sha256 else _git_blob(partial)
    if actual != file.digest or partial.stat().st_size != file.bytes:
        partial.unlink()
        raise DigestMismatch(
            f"{file.path}: its digest is {actual}, {endpoint} states {file.digest}",
            "try again; if it stays so, the hub or something between is damaged",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob(path: Path) -> str:
    """git's name of a file's content: SHA-1 over a header and the bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _place(contents: Contents, files: list[HubFile], waiting: Path, folder: Path) -> None:
    """Link the downloads to their names (copy, where cache and store are different disks)."""
    for file in files:
        target = folder / file.path.relative_to(contents.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(waiting / file.digest)
        except OSError:
            with suppress(FileNotFoundError):
                target.unlink()
            shutil.copyfile(waiting / file.digest, target)


def _origin(wanted: HubModel, commit: str, files: list[HubFile]) -> Origin:
    lines = sorted(f"{file.digest}  {file.path}\n" for file in files)
    return Origin(
        file=wanted.repo,
        bytes=sum(file.bytes for file in files),
        sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
        revision=commit,
    )


@contextmanager
def _hub_errors(hub: _Hub, wanted: HubModel) -> Iterator[None]:
    """Turn the library's and the network's errors into SourceError, which says what to do."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{wanted.repo}: its owner lets only named people in",
            f"accept the terms on its page at {hub.endpoint}/{wanted.repo}, and set HF_TOKEN to your token",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{wanted.repo} has no revision `{wanted.revision}`", "check it on its page"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{hub.endpoint} has no model `{wanted.repo}`, or not for you",
            "check the spelling; for a private model set HF_TOKEN to a token that may read it",
        ) from error
    except errors.HfHubHTTPError as error:
        raise SourceError(*_refusal(hub, wanted, error)) from error
    except (errors.HFValidationError, errors.OfflineModeIsEnabled) as error:
        raise SourceError(f"{wanted.repo}: {_words(error)}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise SourceError(
            f"cannot reach {hub.endpoint} for {wanted.repo}: {_words(error)}",
            "check the network or HF_ENDPOINT, and run it again: what has arrived is kept",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        # What is no answer of a hub: a captive portal's page, another server.
        raise UnsupportedModel(
            f"{hub.endpoint}: did not answer as a hub does: {_words(error)}", "check HF_ENDPOINT"
        ) from error


def _refusal(hub: _Hub, wanted: HubModel, error: errors.HfHubHTTPError) -> tuple[str, str]:
    status = error.response.status_code
    if status in (401, 403):
        return f"{hub.endpoint} refuses {wanted.repo} ({status})", "set HF_TOKEN to a token that may read it"
    if status == 429:
        return f"{hub.endpoint} asks to wait: too many requests", "try again later; a token raises the limit"
    return f"{hub.endpoint} answers {status} for {wanted.repo}", "try again later: what has arrived is kept"
