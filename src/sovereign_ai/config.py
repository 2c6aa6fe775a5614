"""factory.yaml → frozen structs, and where things live on disk. The only reader of the environment.

Every error names file and line, and the nearest right spelling where there is one.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from sovereign_ai.errors import ConfigError, disk_errors
from sovereign_ai.spec import Format, Task

MODEL_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
"""Names of models: they become folder names, Triton model names and Kubernetes labels (≤ 63 characters)."""

SOURCE_KINDS = ("pypi", "file", "hf", "ollama")
LATER_SOURCE_KINDS = ("oci",)
SOURCES_HINT = "write pypi:NAME, file:PATH, hf:ORG/NAME or ollama:NAME[:TAG]"
HUB_SOURCE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*((/[A-Za-z0-9][A-Za-z0-9._-]*)+\.gguf)?"
    r"(@[A-Za-z0-9._/-]+)?"
)
"""ORG/NAME, of a collection of GGUF files ORG/NAME/FILE.gguf; @REVISION is a commit, tag or branch."""
OLLAMA_SOURCE = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*/){0,2}[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9][A-Za-z0-9._-]*)?"
)
"""NAME[:TAG], NAMESPACE/NAME[:TAG] or HOST/NAMESPACE/NAME[:TAG], as Ollama itself names models."""
PYPI_SOURCE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(==[A-Za-z0-9][A-Za-z0-9.!+_-]*)?")
"""NAME or NAME==VERSION (PEP 508 names, PEP 440 versions): nothing that pip could take for an option."""

TIER_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")

MIN_CONTEXT = 16
"""Tokens. Below this a chat template alone leaves no room for an answer."""

ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")
"""Scheme, host and port as browsers send them (RFC 6454)."""

UPSTREAM_URL = re.compile(
    r"https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?/?(v1/?)?"
)
MAX_SERVED_NAME = 200
MAX_GIB = 1_000_000

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""RFC 1123, as Kubernetes names namespaces."""
CLUSTER_VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
DRA_FROM = CLUSTER_VERSIONS.index("1.34")
"""resource.k8s.io/v1 exists from there on."""
IMAGE = re.compile(
    r"(?!.*:latest$)[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})"
)
RECEIVER = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
"""Of traces. Without a name and password: those would stand in process lists and logs."""

MAX_QUEUE = 1_000_000
MAX_QUEUE_TIMEOUT_S = 86_400
MAX_LIMIT = 10**15
MAX_REPLICAS = 1000
MAX_CONCURRENCY = 10_000
MAX_PRIORITY = 100
MAX_WORKERS = 64
"""Bounds against a slip of the finger; no rig comes near them."""

RELEASE = re.compile(r"\d\d\.\d\d")

_DEEPEST = 5
"""factory.yaml nests five levels (tiers, entry, match, field, value); what lies deeper is never right."""

_SET_BY_US = "where"
"""The field of an entry that says where it stands in the file; not a key of it."""

FALLBACK_HINT = "a chat model falls back to chat models, an embedding model to embedding models"

Step = str | int


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that factory.yaml (or the catalog) asks for."""

    name: str
    """The name clients use: lower-case letters, digits, `.`, `_`, `-`."""
    source: str
    """`pypi:NAME[==VERSION]`, `file:PATH` (relative to factory.yaml), `hf:ORG/NAME[/FILE.gguf][@REVISION]`
    or `ollama:NAME[:TAG]` (a model that Ollama has on this machine)."""
    context: int | None = None
    """Tokens of prompt and answer together. Default: the longest that fits, at most what the model was made
    for."""
    task: Task | None = None
    """`chat` or `embed`; default: told from the model's own files."""
    priority: int = 1
    """1 comes first. Where not everything fits, models of a higher number give way."""
    share: float = 1.0
    """Expected share of the traffic, in proportion to the other models' shares."""
    min_tokens_per_s: float = 0.0
    """Slowest acceptable decode of one stream alone, tokens a second."""
    concurrency: int = 1
    """Requests of full context that the KV cache must hold at the same time."""
    replicas: int = 1
    """Copies to run."""
    quantization: tuple[Format, ...] = ()
    """Formats that may be used, no others. Default: the checkpoint's own, and quantized ones where that does
    not fit."""
    tier: str | None = None
    """Only devices of this tier, by name or role."""
    devices: tuple[str, ...] = ()
    """Exactly these devices, by UUID (or a beginning of it that is unique)."""
    remote_code: bool = False
    """Whether Python code that comes with the model may be kept and run by the engine. Without it such a
    model is refused."""
    fallback: tuple[str, ...] = ()
    """Models that answer, in this order, where no endpoint of this one can. Theirs are never followed."""
    where: str = ""
    """file:line of the entry; set when the file is read."""


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices a tier takes: those that meet all that is given."""

    name: str | None = None
    """A part of the card's name, in any case: `RTX 3080`."""
    uuids: tuple[str, ...] = ()
    """UUIDs, or beginnings of them that are unique."""
    min_memory_gib: float | None = None
    max_memory_gib: float | None = None
    """GiB as NVML counts a card's total."""
    min_capability: float | None = None
    """Least compute capability: 8.6."""


class TierRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tier of one's own. Rules apply in order and before the automatic ones; the first that takes a device
    keeps it."""

    name: str
    """Lower-case letters, digits, `-`: it becomes a Kubernetes label."""
    match: Match
    role: str = "utility"
    """`primary`, `context`, `utility`, or a word of one's own."""
    where: str = ""
    """file:line of the entry; set when the file is read."""


Prefer = Literal["quality", "speed"]


class PlannerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prefer: Prefer = "quality"
    """`quality` quantizes only what would not fit otherwise; `speed` takes the fastest format."""
    move_cost: float = 0.05
    """What moving a running deployment must buy, as a part of that model's best speed."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    release: str | None = None
    """Triton release that GPUs are planned for, `YY.MM`; default: the catalog's. The CPU has a locked engine
    of its own."""
    where: str = ""
    """file:line of the release; set when the file is read."""


class RouteLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be asked of one model, by all keys together."""

    model: str
    """The name clients use."""
    concurrency: int | None = None
    """Requests in its engines at the same time; more wait. Default: what its healthy endpoints hold."""
    queue: int | None = None
    """Requests that may wait. Default: `gateway.queue`."""
    requests_per_minute: int | None = None
    """In any 60 seconds."""
    tokens_per_minute: int | None = None
    """Prompts and answers together, in any 60 seconds."""
    log_content: bool = False
    """Whether the log gets requests and answers whole. Without it neither is ever written down."""


class UpstreamEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server that others run, and that speaks OpenAI's protocol: its models are served beside the planned
    ones."""

    model: str
    """The name clients use. Several upstreams of one model are its endpoints."""
    url: str
    """`http://HOST[:PORT]`, with or without `/v1` behind it."""
    engine: Literal["vllm", "openai"] = "openai"
    """`vllm`: a server of vLLM's, whose health can be asked and whose chats can be continued elsewhere."""
    upstream_model: str | None = None
    """The name that the server knows it by. Default: `model`."""
    task: Task = "chat"
    """`chat` or `embed`: what the model is for."""
    context: int = 0
    """Tokens that prompt and answer may take together; 0: the server judges that."""
    weight: float = 1.0
    """Speed beside the model's other upstreams: one of 2 gets twice the requests of one of 1."""
    concurrency: int = 0
    """Requests that it computes at once; more wait here. 0: 256."""
    key_file: Path | None = None
    """File with the API key that the server asks for."""


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    certificate: Path
    """PEM file: the certificate, and those that lead to its root."""
    key: Path
    """PEM file of its private key, without a password."""


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endpoint: str
    """Where traces go: the base URL of an OTLP/HTTP receiver, `http://HOST:4318`."""
    sample: float = 1.0
    """The part of requests that is traced, 0 to 1, where the client does not say."""
    where: str = ""
    """file:line of the entry; set when the file is read."""


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    """Address to listen on. The default serves this machine alone: opening it is a decision."""
    port: int = 8000
    """TCP port; 8000 because vLLM's own server and most examples use it."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest request body, in bytes. 4 MiB hold about a million tokens of English text."""
    queue: int = 1000
    """Requests per model that may wait for a place in an engine. More are refused with 429."""
    queue_timeout_s: float = 60.0
    """Longest wait in seconds, also for a model that still loads; a client may ask for less."""
    limits: tuple[RouteLimits, ...] = ()
    """Limits of single models."""
    metrics_key: bool = False
    """Whether /metrics needs a key of the scope `metrics`."""
    tls: TlsSettings | None = None
    """Certificate and key: the gateway speaks HTTPS then, and HTTPS only."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the gateway from a browser: `https://chat.example.org`, or `*`."""
    upstreams: tuple[UpstreamEntry, ...] = ()
    """Servers that others run, whose models are served too."""
    usage_days: int = 90
    """Days that the usage of every single request is kept; then its day's sums are."""
    tracing: TracingSettings | None = None
    """Where OpenTelemetry traces go; none are made without it."""
    workers: int = 1
    """Processes that answer at the port. One takes thousands of requests a second of one core; all of them
    share one truth about limits, at the price of two questions to it for each request."""


class ClusterStorage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The drive of the models on every node."""

    kind: Literal["local", "hostPath"] = "local"
    """`local`: a PersistentVolume a node, which passes Pod Security's `restricted`. `hostPath` does not even
    pass `baseline`."""
    path: Path = Path("/mnt/sovereign-storage")
    """Where the drive is mounted; models lie below `models/NAME/VERSION`."""
    capacity_gib: int = 1000
    """What the PersistentVolume says of its size; nothing enforces it."""


Pinning = Literal["auto", "tokens", "dra", "device-plugin", "env"]


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Kubernetes cluster that the plan is rendered for."""

    namespace: str = "sovereign"
    """Where everything of the stack lives."""
    version: str = "1.31"
    """The cluster's minor version, from 1.31 on; `apply` compares it with the cluster's own."""
    pinning: Pinning = "auto"
    """How pods get their cards: `tokens` below 1.34 and `dra` from there on, or as said."""
    runtime_class: str | None = None
    """A RuntimeClass that the cluster has. Default: `sovereign-nvidia` is made, with the handler `nvidia`."""
    engine_image: str | None = None
    """Default: NVIDIA's Triton image with vLLM of `engine.release`."""
    control_image: str = "localhost/sovereign-ai:0.1.0"
    """Of gateway and agent: there is no registry of ours, so it is loaded on the nodes."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets of the namespace."""
    storage: ClusterStorage = ClusterStorage()
    shared_memory_gib: int = 32
    """Shared memory of the primary tier's pods; others have a quarter. It is a bound, not a reservation."""
    gateway_replicas: int = 2
    clients: tuple[str, ...] = ()
    """Namespaces whose pods may reach the gateway, besides the stack's own."""
    monitoring: bool = False
    """Whether ServiceMonitors and a Grafana dashboard are made: the cluster needs Prometheus' operator."""
    agent: bool = True
    """Whether the node agent runs on every node with cards."""


class Factory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of factory.yaml. Without a file: `Factory()`, and the catalog's default models."""

    models: tuple[ModelEntry, ...] = ()
    storage: Path | None = None
    """Folder for `models/`; default: SOVEREIGN_HOME/storage."""
    gateway: GatewaySettings = GatewaySettings()
    tiers: tuple[TierRule, ...] = ()
    planner: PlannerSettings = PlannerSettings()
    engine: EngineSettings = EngineSettings()
    kubernetes: ClusterSettings = ClusterSettings()


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything lives. One home folder holds all of it."""

    home: Path
    storage: Path

    @property
    def models(self) -> Path:
        return self.storage / "models"

    @property
    def engines(self) -> Path:
        return self.home / "engines"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def ledger(self) -> Path:
        return self.home / "ledger.sqlite"


def environment() -> Mapping[str, str]:
    """A copy of the process environment: the only door to it."""
    return dict(os.environ)


def home_folder(environ: Mapping[str, str]) -> Path:
    """SOVEREIGN_HOME, else XDG_DATA_HOME/sovereign, else ~/.local/share/sovereign."""
    if chosen := environ.get("SOVEREIGN_HOME"):
        return _expanded(Path(chosen), "SOVEREIGN_HOME").absolute()
    if data := environ.get("XDG_DATA_HOME"):
        return Path(data).absolute() / "sovereign"
    return _expanded(Path(environ.get("HOME") or "~"), "HOME").absolute() / ".local/share/sovereign"


def paths(environ: Mapping[str, str], factory: Factory) -> Paths:
    """All folders: `storage` from factory.yaml wins over the one in the home folder."""
    home = home_folder(environ)
    return Paths(home=home, storage=factory.storage or home / "storage")


def load_factory(path: Path) -> Factory:
    """Read factory.yaml. Relative paths in it are relative to the file; a key without a value is left out.

    Raises ConfigError for anything that is not exactly what the schema says.
    """
    document = _parse(path, _read(path))
    if document.data is None:
        return Factory()
    if not isinstance(document.data, dict):
        raise ConfigError(f"{document.at()}: expected keys such as `models:`, got {_kind(document.data)}")
    _refuse_unknown_keys(document, (), document.data, Factory)
    factory = _convert(document)
    _check_models(document, factory.models)
    _check_tiers(document, factory.tiers)
    _check_gateway(document, factory.gateway)
    _check_limits(document, factory.gateway)
    _check_upstreams(document, factory)
    _check_cluster(document, factory.kubernetes)
    _check_door(document, factory.gateway)
    _check_tracing(document, factory.gateway.tracing)
    _check_planning(document, factory)
    return _resolve_paths(document, factory)


def check_source(source: str, *, where: str = "") -> None:
    """Raise ConfigError unless `source` is of a kind that this version can bring in."""
    kind, colon, rest = source.partition(":")
    if kind in LATER_SOURCE_KINDS:
        raise ConfigError(f"{where}source kind `{kind}:` is not supported yet", SOURCES_HINT)
    if kind not in SOURCE_KINDS or not rest:
        near = _nearest(kind, SOURCE_KINDS) if colon and rest else None
        hint = f"did you mean `{near}:`?" if near else SOURCES_HINT
        raise ConfigError(f"{where}`{source}` is not a model source", hint)
    if kind == "pypi" and not PYPI_SOURCE.fullmatch(rest):
        raise ConfigError(f"{where}`{rest}` is not a package name", "write pypi:NAME or pypi:NAME==VERSION")
    if kind == "hf" and not HUB_SOURCE.fullmatch(rest):
        raise ConfigError(f"{where}`{rest}` is not a hub name", "write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    if kind == "ollama" and not OLLAMA_SOURCE.fullmatch(rest):
        raise ConfigError(
            f"{where}`{rest}` is not a name of Ollama's", "write ollama:NAME or ollama:NAME:TAG"
        )
    if "\0" in rest:
        raise ConfigError(f"{where}a path cannot hold a NUL character")


class _Document(NamedTuple):
    """The plain values of a YAML file, and the line of each of them."""

    path: Path
    data: Any
    lines: dict[tuple[Step, ...], int]

    def at(self, *steps: Step) -> str:
        """`factory.yaml:7` for the value at `steps`, or for the nearest one around it."""
        while steps and steps not in self.lines:
            steps = steps[:-1]
        return f"{self.path}:{self.lines.get(steps, 1)}"


def _read(path: Path) -> str:
    try:
        with disk_errors("reading the factory file", path):
            return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", "give the path of your factory.yaml with -f") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder, not a file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _parse(path: Path, text: str) -> _Document:
    """Compose the nodes only: they carry a line each, and no value is constructed that we did not ask for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            root = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        raise _syntax_error(path, error) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    except (KeyError, ValueError, OverflowError) as error:
        # The parser lets these out for an unknown %YAML version and for a \U escape beyond Unicode.
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    lines: dict[tuple[Step, ...], int] = {}
    document = _Document(path, None, lines)
    return document._replace(data=None if root is None else _value(document, (), root))


def _syntax_error(path: Path, error: YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(f"{where}: not valid YAML: {problem}", "fix the syntax at that line")


def _value(document: _Document, steps: tuple[Step, ...], node: Node) -> Any:
    document.lines.setdefault(steps, node.start_mark.line + 1)
    prefix, _, kind = str(node.tag).rpartition(":")
    if prefix != "tag:yaml.org,2002":
        raise ConfigError(
            f"{document.at(*steps)}: the tag `{node.tag}` is not supported", "write the plain value"
        )
    if isinstance(node, ScalarNode):
        return _scalar(kind, _text(document, node))
    mapping = isinstance(node, MappingNode)
    if len(steps) >= _DEEPEST:
        return {} if mapping else []
    if mapping:
        return _mapping(document, steps, node)
    return [_value(document, (*steps, index), item) for index, item in enumerate(node.value)]


def _mapping(document: _Document, steps: tuple[Step, ...], node: Node) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            raise ConfigError(f"{document.path}:{line}: a key must be a word")
        key = _text(document, key_node)
        place = (*steps, key)
        if place in document.lines:
            problem = f"`{key}` is given twice (first on line {document.lines[place]})"
            raise ConfigError(f"{document.path}:{line}: {problem}", "keep one of the two")
        document.lines[place] = line
        values[key] = _value(document, place, value_node)
    return {key: value for key, value in values.items() if value is not None}


def _text(document: _Document, node: Node) -> str:
    """The node's text; pairs of \\u escapes as JSON writes them become the one character they mean."""
    try:
        return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        line = node.start_mark.line + 1
        raise ConfigError(f"{document.path}:{line}: a \\u escape names half a character") from error


def _scalar(kind: str, text: str) -> Any:
    """YAML 1.2's plain values; what only looks like a number stays the text it is."""
    try:
        if kind == "int":
            return _whole(text.replace("_", ""))
        if kind == "float":
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text
    if kind == "bool":
        return text.lower() == "true"
    return None if kind == "null" else text


def _whole(text: str) -> int:
    prefixed = text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b")
    return int(text, 0 if prefixed else 10)


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"`{value}`"


def _nearest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def _struct_of(annotation: Any) -> type[msgspec.Struct] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _refuse_unknown_keys(
    document: _Document, steps: tuple[Step, ...], data: Any, struct: type[msgspec.Struct]
) -> None:
    if isinstance(data, list):
        for index, item in enumerate(data):
            _refuse_unknown_keys(document, (*steps, index), item, struct)
    if not isinstance(data, dict):
        return
    fields = msgspec.structs.fields(struct)
    known = {field.encode_name: field.type for field in fields if field.name != _SET_BY_US}
    for key, value in data.items():
        if key not in known:
            near = _nearest(key, known)
            hint = f"did you mean `{near}`?" if near else f"known keys here: {', '.join(known)}"
            raise ConfigError(f"{document.at(*steps, key)}: unknown key `{key}`", hint)
        if inner := _struct_of(known[key]):
            _refuse_unknown_keys(document, (*steps, key), value, inner)


_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
}
"""msgspec speaks JSON's and Python's words; factory.yaml's reader knows YAML's."""


def _convert(document: _Document) -> Factory:
    try:
        return msgspec.convert(document.data, Factory, dec_hook=_decode)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        steps: list[Step] = [
            int(number) if number else name for name, number in re.findall(r"\.(\w+)|\[(\d+)\]", where)
        ]
        spot = where.strip("`.")
        message = f"{document.at(*steps)}: {_plain(problem)}" + (f" (at `{spot}`)" if spot else "")
        raise ConfigError(message, _conversion_hint(problem, steps)) from error


def _plain(problem: str) -> str:
    problem = re.sub(r"`(\w+) \| null`", r"`\1`", problem).replace("Object missing", "missing")
    problem = re.sub(r"`(object|array|str|int|float)`", lambda match: _WORDS[match[1]], problem)
    return problem[:1].lower() + problem[1:]


_CHOICES: dict[str, tuple[str, ...]] = {
    "task": get_args(Task),
    "quantization": get_args(Format),
    "prefer": get_args(Prefer),
}


def _conversion_hint(problem: str, steps: list[Step]) -> str:
    if problem.startswith(("Expected `str`", "Expected `str | null`")):
        return "put it in quotes"
    choices = next((_CHOICES[step] for step in steps if step in _CHOICES), ())
    if not problem.startswith("Invalid enum value") or not choices:
        return ""
    near = _nearest(problem.split("'")[1], choices)
    return f"did you mean `{near}`?" if near else f"one of: {', '.join(choices)}"


def _decode(kind: type, value: Any) -> Any:
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"Expected a path, got {_kind(value)}")
    if not value or "\0" in value:
        raise ValueError("a path cannot be empty or hold a NUL character")
    return Path(value)


def _check_models(document: _Document, models: tuple[ModelEntry, ...]) -> None:
    seen: dict[str, str] = {}
    for index, model in enumerate(models):
        where = document.at("models", index, "name")
        if not MODEL_NAME.fullmatch(model.name):
            raise ConfigError(
                f"{where}: `{model.name}` cannot be a model name",
                "use lower-case letters, digits, '.', '_' and '-', at most 63 characters, "
                "beginning and ending with a letter or digit",
            )
        if model.name in seen:
            first = seen[model.name].rpartition(":")[2]
            raise ConfigError(f"{where}: model `{model.name}` is named twice (first on line {first})")
        seen[model.name] = where
        check_source(model.source, where=f"{document.at('models', index, 'source')}: ")
        _check_wish(document, index, model)
    for index, model in enumerate(models):
        _check_fallback(document, index, model, models)


def _check_fallback(
    document: _Document, index: int, model: ModelEntry, models: tuple[ModelEntry, ...]
) -> None:
    """A task that no file here tells of is looked at once the model is known: `fallback_problem`."""
    tasks = {one.name: one.task for one in models}
    for at, name in enumerate(model.fallback):
        where = document.at("models", index, "fallback", at)
        if name not in tasks:
            near = _nearest(name, set(tasks) - {model.name})
            hint = f"did you mean `{near}`?" if near else f"models here: {', '.join(tasks)}"
            raise ConfigError(f"{where}: there is no model `{name}` to fall back to", hint)
        if name == model.name:
            raise ConfigError(f"{where}: `{name}` cannot fall back to itself")
        if name in model.fallback[:at]:
            raise ConfigError(f"{where}: fallback names `{name}` twice")
        if problem := fallback_problem(model.name, model.task, name, tasks[name]):
            raise ConfigError(f"{where}: {problem}", FALLBACK_HINT)


def fallback_problem(model: str, task: Task | None, other: str, other_task: Task | None) -> str:
    """Why `other` cannot answer for `model`; empty where it can, or where a task is not known yet."""
    if task is None or other_task is None or task == other_task:
        return ""
    return f"`{model}` ({task}) cannot fall back to `{other}` ({other_task})"


def _check_wish(document: _Document, index: int, model: ModelEntry) -> None:
    def refuse(key: str, problem: str) -> NoReturn:
        raise ConfigError(f"{document.at('models', index, key)}: {key} {problem}")

    if model.context is not None and model.context < MIN_CONTEXT:
        refuse("context", f"{model.context} is below {MIN_CONTEXT} tokens")
    if not 1 <= model.priority <= MAX_PRIORITY:
        refuse("priority", f"{model.priority} is not between 1 and {MAX_PRIORITY}")
    if not 0 < model.share < math.inf:
        refuse("share", f"{model.share:g} is not above 0")
    if not 0 <= model.min_tokens_per_s < math.inf:
        refuse("min_tokens_per_s", f"{model.min_tokens_per_s:g} is not 0 or more")
    if not 1 <= model.replicas <= MAX_REPLICAS:
        refuse("replicas", f"{model.replicas} is not between 1 and {MAX_REPLICAS}")
    if not 1 <= model.concurrency <= MAX_CONCURRENCY:
        refuse("concurrency", f"{model.concurrency} is not between 1 and {MAX_CONCURRENCY}")
    if len(set(model.devices)) < len(model.devices):
        refuse("devices", "names a device twice")
    if model.devices and model.replicas > 1:
        refuse("replicas", f"{model.replicas} copies cannot all be on the same `devices`")


def _check_tiers(document: _Document, tiers: tuple[TierRule, ...]) -> None:
    seen: dict[str, str] = {}
    for index, tier in enumerate(tiers):
        where = document.at("tiers", index, "name")
        if not TIER_NAME.fullmatch(tier.name) or not TIER_NAME.fullmatch(tier.role):
            raise ConfigError(
                f"{where}: `{tier.name}` ({tier.role}) cannot be a tier's name and role",
                "use lower-case letters, digits and '-', at most 40 characters",
            )
        if tier.name in seen:
            first = seen[tier.name].rpartition(":")[2]
            raise ConfigError(f"{where}: tier `{tier.name}` is named twice (first on line {first})")
        seen[tier.name] = where
        if tier.match == Match():
            raise ConfigError(
                f"{document.at('tiers', index, 'match')}: matches nothing", "give name, uuids or memory"
            )
        _check_match(document, index, tier.match)


def _check_match(document: _Document, index: int, match: Match) -> None:
    for key in ("min_memory_gib", "max_memory_gib", "min_capability"):
        value = getattr(match, key)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{document.at('tiers', index, 'match', key)}: {key} {value:g} is not above 0")


def _check_planning(document: _Document, factory: Factory) -> None:
    if not 0 <= factory.planner.move_cost < math.inf:
        where = document.at("planner", "move_cost")
        raise ConfigError(f"{where}: move_cost {factory.planner.move_cost:g} is not 0 or more")
    release = factory.engine.release
    if release is not None and not RELEASE.fullmatch(release):
        where = document.at("engine", "release")
        raise ConfigError(f"{where}: `{release}` is not a Triton release", 'write "YY.MM", in quotes')


def _check_gateway(document: _Document, gateway: GatewaySettings) -> None:
    if not gateway.host or re.search(r"\s|\0|/", gateway.host):
        raise ConfigError(f"{document.at('gateway', 'host')}: `{gateway.host}` is not a host name or address")
    if not 0 < gateway.port < 65536:
        raise ConfigError(f"{document.at('gateway', 'port')}: port {gateway.port} is not between 1 and 65535")
    if gateway.max_body_bytes < 1024:
        raise ConfigError(f"{document.at('gateway', 'max_body_bytes')}: max_body_bytes must be at least 1024")


def _check_limits(document: _Document, gateway: GatewaySettings) -> None:
    seen: set[str] = set()
    for index, limits in enumerate(gateway.limits):
        place = ("gateway", "limits", index)
        if limits.model in seen:
            raise ConfigError(f"{document.at(*place)}: model `{limits.model}` has limits twice")
        seen.add(limits.model)
        for key in ("concurrency", "queue", "requests_per_minute", "tokens_per_minute"):
            least, value = 0 if key == "queue" else 1, getattr(limits, key)
            if value is not None and not least <= value <= MAX_LIMIT:
                raise ConfigError(f"{document.at(*place, key)}: {key} {value} is below {least} or absurd")


def _check_upstreams(document: _Document, factory: Factory) -> None:
    planned = {model.name for model in factory.models}
    tasks: dict[str, Task] = {}
    seen: set[tuple[str, str]] = set()
    for index, one in enumerate(factory.gateway.upstreams):
        problem = _upstream_problem(one)
        if one.model in planned:
            problem = ("model", f"`{one.model}` is planned here too: give one of the two another name")
        elif tasks.setdefault(one.model, one.task) != one.task:
            problem = ("task", f"`{one.model}` has another task at another upstream")
        elif (one.model, one.url) in seen:
            problem = ("url", f"`{one.url}` is named twice for `{one.model}`")
        seen.add((one.model, one.url))
        if problem:
            raise ConfigError(f"{document.at('gateway', 'upstreams', index, problem[0])}: {problem[1]}")


def _upstream_problem(one: UpstreamEntry) -> tuple[str, str] | None:
    """The key that is wrong, and how."""
    if not one.model.isprintable() or not 0 < len(one.model) <= MAX_SERVED_NAME:
        return "model", f"`{one.model}` cannot be a model's name"
    if not UPSTREAM_URL.fullmatch(one.url):
        return "url", f"`{one.url}` is not the address of a server: write http://HOST[:PORT]"
    if not 0 < one.weight < math.inf:
        return "weight", f"weight {one.weight:g} is not above 0"
    for key, most in (("context", MAX_LIMIT), ("concurrency", MAX_CONCURRENCY)):
        if not 0 <= getattr(one, key) <= most:
            return key, f"{key} {getattr(one, key)} is not between 0 and {most}"
    return None


def _check_cluster(document: _Document, cluster: ClusterSettings) -> None:
    names = {"namespace": [cluster.namespace], "runtime_class": [cluster.runtime_class or "none"]}
    names |= {"pull_secrets": list(cluster.pull_secrets), "clients": list(cluster.clients)}
    wrong = [(key, name) for key, those in names.items() for name in those if not DNS_LABEL.fullmatch(name)]
    problems = [(key, f"`{name[:80]}` is not a name that Kubernetes takes") for key, name in wrong]
    images = [("engine_image", cluster.engine_image), ("control_image", cluster.control_image)]
    problems += [
        (key, f"`{image[:200]}` is not an image with a tag (not `latest`) or a digest")
        for key, image in images
        if image is not None and not IMAGE.fullmatch(image)
    ]
    for key, problem in [*problems, *_version_problems(cluster), *_size_problems(cluster)][:1]:
        raise ConfigError(f"{document.at('kubernetes', key)}: {problem}")


def _version_problems(cluster: ClusterSettings) -> Iterator[tuple[str, str]]:
    if cluster.version not in CLUSTER_VERSIONS:
        yield "version", f"{cluster.version} is not one of {', '.join(CLUSTER_VERSIONS)}"
    elif cluster.pinning == "dra" and CLUSTER_VERSIONS.index(cluster.version) < DRA_FROM:
        yield "pinning", f"`dra` needs Kubernetes {CLUSTER_VERSIONS[DRA_FROM]}, this is {cluster.version}"


def _size_problems(cluster: ClusterSettings) -> Iterator[tuple[str, str]]:
    for key, least, most in (("shared_memory_gib", 1, 1024), ("gateway_replicas", 1, 100)):
        if not least <= getattr(cluster, key) <= most:
            yield key, f"{getattr(cluster, key)} is not between {least} and {most}"
    storage = cluster.storage
    if not storage.path.is_absolute() or ".." in storage.path.parts:
        yield "storage", f"{storage.path} is not an absolute path"
    if not 1 <= storage.capacity_gib <= MAX_GIB:
        yield "storage", f"capacity_gib {storage.capacity_gib} is not between 1 and {MAX_GIB}"


def _check_door(document: _Document, gateway: GatewaySettings) -> None:
    def refuse(key: str, problem: str) -> NoReturn:
        raise ConfigError(f"{document.at('gateway', key)}: {key} {problem}")

    if not 0 <= gateway.queue <= MAX_QUEUE:
        refuse("queue", f"{gateway.queue} is not between 0 and {MAX_QUEUE:,}")
    if not 0 < gateway.queue_timeout_s <= MAX_QUEUE_TIMEOUT_S:
        refuse("queue_timeout_s", f"{gateway.queue_timeout_s:g} is not between 0 and {MAX_QUEUE_TIMEOUT_S}")
    if gateway.usage_days < 1:
        refuse("usage_days", f"{gateway.usage_days} is less than 1")
    if not 1 <= gateway.workers <= MAX_WORKERS:
        refuse("workers", f"{gateway.workers} is not between 1 and {MAX_WORKERS}")
    for origin in gateway.cors:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            refuse("cors", f"`{origin}` is not an origin: write https://HOST[:PORT], without a path")


def _check_tracing(document: _Document, tracing: TracingSettings | None) -> None:
    if tracing is None:
        return
    if not RECEIVER.fullmatch(tracing.endpoint):
        where = document.at("gateway", "tracing", "endpoint")
        raise ConfigError(f"{where}: `{tracing.endpoint}` is not a receiver's URL", "write http://HOST:4318")
    if not 0 <= tracing.sample <= 1:
        where = document.at("gateway", "tracing", "sample")
        raise ConfigError(f"{where}: sample {tracing.sample:g} is not between 0 and 1")


def _resolve_paths(document: _Document, factory: Factory) -> Factory:
    base = document.path.absolute().parent
    models = tuple(
        msgspec.structs.replace(
            _resolve_source(base, model, document.at("models", index, "source")),
            where=document.at("models", index),
        )
        for index, model in enumerate(factory.models)
    )
    tiers = tuple(
        msgspec.structs.replace(tier, where=document.at("tiers", index))
        for index, tier in enumerate(factory.tiers)
    )
    storage = base / _expanded(factory.storage, document.at("storage")) if factory.storage else None
    engine = factory.engine
    if engine.release is not None:
        engine = msgspec.structs.replace(engine, where=document.at("engine", "release"))
    return msgspec.structs.replace(
        factory,
        models=models,
        tiers=tiers,
        storage=storage,
        engine=engine,
        gateway=_resolve_keys(
            base, document, _place_tracing(document, _resolve_tls(base, document, factory.gateway))
        ),
    )


def _resolve_tls(base: Path, document: _Document, gateway: GatewaySettings) -> GatewaySettings:
    if gateway.tls is None:
        return gateway
    where = document.at("gateway", "tls")
    certificate, key = (base / _expanded(path, where) for path in (gateway.tls.certificate, gateway.tls.key))
    return msgspec.structs.replace(gateway, tls=TlsSettings(certificate=certificate, key=key))


def _resolve_keys(base: Path, document: _Document, gateway: GatewaySettings) -> GatewaySettings:
    upstreams = tuple(
        msgspec.structs.replace(
            one, key_file=base / _expanded(one.key_file, document.at("gateway", "upstreams", index))
        )
        if one.key_file
        else one
        for index, one in enumerate(gateway.upstreams)
    )
    return msgspec.structs.replace(gateway, upstreams=upstreams)


def _place_tracing(document: _Document, gateway: GatewaySettings) -> GatewaySettings:
    if gateway.tracing is None:
        return gateway
    tracing = msgspec.structs.replace(gateway.tracing, where=document.at("gateway", "tracing"))
    return msgspec.structs.replace(gateway, tracing=tracing)


def encode_gateway(settings: GatewaySettings) -> str:
    """As JSON, for the gateway's own process."""
    return msgspec.json.encode(settings, enc_hook=str).decode()


def decode_gateway(text: str) -> GatewaySettings:
    """What `encode_gateway` made. Raises ConfigError."""
    try:
        return msgspec.json.decode(text, type=GatewaySettings, dec_hook=_decode)
    except msgspec.DecodeError as error:
        raise ConfigError(f"not the gateway's settings: {error}") from error


def _resolve_source(base: Path, model: ModelEntry, where: str) -> ModelEntry:
    kind, _, rest = model.source.partition(":")
    if kind != "file":
        return model
    return msgspec.structs.replace(model, source=f"file:{base / _expanded(Path(rest), where)}")


def _expanded(path: Path, where: str) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{where}: `{path}` names a user that does not exist here") from error
