"""The whole way: read a compose file, tell its services apart, make factory.yaml and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sovereign_ai.errors import ConfigError, SovereignError
from sovereign_ai.migrate.book import Book, Line, Page
from sovereign_ai.migrate.cards import View, devices_of
from sovereign_ai.migrate.compose import Stack, read_stack, read_text
from sovereign_ai.migrate.draft import Draft, Fact
from sovereign_ai.migrate.finish import embeds, entries_of
from sovereign_ai.migrate.front import Door, door_of, gateway_of
from sovereign_ai.migrate.others import model_like, other_of, tell_other
from sovereign_ai.migrate.readers import reader_of
from sovereign_ai.migrate.reading import Job, Reading
from sovereign_ai.migrate.secrets import concealed, hidden, secrets_of
from sovereign_ai.migrate.service import Service
from sovereign_ai.migrate.writing import factory_text
from sovereign_ai.spec import Noun

MOST_YAML_FILES = 200


class Migration(Noun, frozen=True, kw_only=True):
    """`factory` is the text of factory.yaml; empty where no model could be carried over."""

    file: str
    factory: str
    models: tuple[str, ...]
    report: tuple[Line, ...]


def migrate(path: Path, view: View | None = None, *, folder: Path | None = None) -> Migration:
    """Read the compose file at `path`.

    `view` is the machine that the stack ran on; `folder` is where factory.yaml will lie (None: beside the
    compose file). Raises ConfigError with file and line, never with a secret in it.
    """
    book = Book()
    stack = read_stack(path, book)
    secrets = secrets_of(stack.services, stack.variables)
    try:
        return _without(secrets, _migrated(stack, book, view, folder))
    except SovereignError as error:
        raise concealed(error, secrets) from None


def _migrated(stack: Stack, book: Book, view: View | None, folder: Path | None) -> Migration:
    drafts: list[Draft] = []
    doors: list[Door] = []
    for service in stack.services:
        found, door = _read(stack, service, book, view)
        drafts += found
        doors += [door] if door else []
    if not any(reader_of(service) for service in stack.services):
        raise _no_engine(stack)
    entries = entries_of(book, [_at_home(book, draft, stack.path, folder) for draft in drafts])
    gateway = gateway_of(book, doors, stack.place)
    for service in stack.services:
        if reader_of(service) is None:
            tell_other(Page(book, service.name, service.place), service, gateway.url)
    text = factory_text(stack.path, _called(stack.path, folder), entries, gateway.facts) if entries else ""
    names = tuple(str(entry.value("name")) for entry in entries)
    return Migration(file=str(stack.path), factory=text, models=names, report=book.report())


def _without(secrets: frozenset[str], made: Migration) -> Migration:
    lines = tuple(
        Line(
            kind=line.kind,
            where=line.where,
            service=line.service,
            what=hidden(line.what, secrets),
            todo=hidden(line.todo, secrets),
        )
        for line in made.report
    )
    return Migration(file=made.file, factory=made.factory, models=made.models, report=lines)


def _read(stack: Stack, service: Service, book: Book, view: View | None) -> tuple[list[Draft], Door | None]:
    """The models of a service, and the port that they were behind."""
    page = Page(book, service.name, service.place)
    reader = reader_of(service)
    if reader is None:
        other = other_of(service)
        front = other is not None and other.front
        return [], door_of(book, service, 0, front=True, embeds=False) if front else None
    if service.replicas == 0:
        page.left(service.place, "switched off: it has 0 replicas")
        return [], None
    if service.profiles:
        what = f"only started with profile {', '.join(service.profiles)}: carried over as if it always were"
        page.assumed(service.place, what, "take its models out of factory.yaml if it is not used")
    reading = reader.read(Job(service, page, stack.services, lambda folder: _yaml_files(stack, folder)))
    _tell_token(page, service)
    if "rocm" in service.image.lower():
        what = "an image for AMD's cards: an inventory knows NVIDIA's alone"
        page.left(service.image_place, what, "plan for the NVIDIA cards that there are, or for the CPU")
    found = _placed(page, service, reading, view)
    return found, door_of(
        book, service, reading.port, front=False, embeds=bool(found) and all(map(embeds, found))
    )


def _placed(page: Page, service: Service, reading: Reading, view: View | None) -> list[Draft]:
    if not reading.drafts:
        return []
    more: dict[str, Fact] = {}
    if devices := devices_of(page, service, reading, view):
        more["devices"] = devices
    if service.replicas > 1:
        more["replicas"] = Fact(service.replicas, service.place)
        page.carried(service.place, f"replicas {service.replicas}")
    optional = bool(service.profiles)
    return [draft._replace(facts={**draft.facts, **more}, optional=optional) for draft in reading.drafts]


def _tell_token(page: Page, service: Service) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"):
        if (word := service.setting(name)) is not None:
            what = f"the token for Hugging Face (`{name}`) is not copied"
            page.changed(word.place, what, "set HF_TOKEN when the models are brought in, if they need it")


def _at_home(book: Book, draft: Draft, path: Path, folder: Path | None) -> Draft:
    """A `file:` source as factory.yaml sees it, and whether it is there at all."""
    kind, _, rest = draft.source.partition(":")
    if kind != "file":
        return draft
    file = _expanded(path.parent, rest)
    if not _exists(file):
        what = f"{rest} is not there when this is written: on the machine of the stack it may be"
        book.assumed(
            draft.place, draft.service, what, "run this there, or put the right path into factory.yaml"
        )
    beside = folder is None or folder.absolute() == path.parent.absolute()
    if beside or rest.startswith(("/", "~")):
        return draft
    return draft._replace(source=f"file:{file.absolute()}")


def _expanded(base: Path, text: str) -> Path:
    """A `~` of a user that does not exist here stays as it is."""
    try:
        return base / Path(text).expanduser()
    except RuntimeError:
        return base / text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _yaml_files(stack: Stack, folder: str) -> Mapping[str, str]:
    where = _expanded(stack.path.parent, folder)
    try:
        files = sorted(
            file for file in where.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file()
        )
    except (OSError, ValueError):
        return {}
    return {str(file): read_text(file) for file in files[:MOST_YAML_FILES]}


def _called(path: Path, folder: Path | None) -> str:
    beside = folder is None or folder.absolute() == path.parent.absolute()
    return path.name if beside else str(path)


def _no_engine(stack: Stack) -> ConfigError:
    """Points at the service that looks most like one."""
    likely = next((hints[0] for service in stack.services if (hints := model_like(service))), None)
    names = ", ".join(service.name for service in stack.services[:8])
    where = likely.place if likely else stack.services[0].place
    looks = f"; `{likely.text}` looks as if it named a model" if likely else ""
    return ConfigError(
        f"{where}: no service runs a model that is known here ({names}){looks}",
        "known: llama.cpp, Ollama, vLLM, text-generation-webui, LocalAI, text-embeddings-inference, "
        "text-generation-inference",
    )
