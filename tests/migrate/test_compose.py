"""What a compose file says in several ways, read as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.book import Book
from sovereign_ai.migrate.compose import read_stack
from sovereign_ai.migrate.service import Service, Word
from sovereign_ai.migrate.tree import Place
from tests.migrate.conftest import service


def read(folder: Path, text: str) -> tuple[dict[str, Service], Book]:
    file, book = folder / "docker-compose.yml", Book()
    file.write_text(text)
    return {one.name: one for one in read_stack(file, book).services}, book


def only(folder: Path, text: str) -> Service:
    return read(folder, service(text))[0]["it"]


def texts(words: tuple[Word, ...]) -> list[str]:
    return [word.text for word in words]


@pytest.mark.parametrize(
    "text",
    [
        "environment: [A=1, B=, 'C=x=y']",
        "environment: {A: 1, B: '', C: x=y}",
        "environment:\n  - A=1\n  - B=\n  - C=x=y",
    ],
)
def test_environment(tmp_path: Path, text: str) -> None:
    found = only(tmp_path, text).environment
    assert {name: word.text for name, word in found.items()} == {"A": "1", "B": "", "C": "x=y"}


def test_a_variable_by_name_alone_is_taken_from_the_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    services, book = read(tmp_path, service("environment: [A, B]\ncommand: x"))
    assert {name: word.text for name, word in services["it"].environment.items()} == {"A": "1"}
    assert [line.what for line in book.report()] == ["variable `B` has no value: it counts as empty"]


@pytest.mark.parametrize(
    "text", ["command: a 'b c' -d", "command: [a, b c, -d]", "command:\n- a\n- b c\n- -d"]
)
def test_commands(tmp_path: Path, text: str) -> None:
    assert texts(only(tmp_path, text).words) == ["a", "b c", "-d"]


def test_words_of_folded_commands_have_their_lines(tmp_path: Path) -> None:
    found = only(tmp_path, "command: >\n  -m x\n  -c 5\n\n  --last")
    assert [word.place.line for word in found.command] == [4, 4, 5, 5, 7]


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("'8080:80'", ("", 8080, 80)),
        ("'80'", ("", None, 80)),
        ("80", ("", None, 80)),
        ("'127.0.0.1:8080:80/tcp'", ("127.0.0.1", 8080, 80)),
        ("'[::1]:8080:80'", ("::1", 8080, 80)),
        ("'127.0.0.1::80'", ("127.0.0.1", None, 80)),
        ("{target: 80, published: '8080', host_ip: 10.0.0.1}", ("10.0.0.1", 8080, 80)),
        ("{target: 80}", ("", None, 80)),
    ],
)
def test_ports(tmp_path: Path, text: str, port: tuple[str, int | None, int]) -> None:
    (found,) = only(tmp_path, f"ports: [{text}]").ports
    assert found[:3] == port


def test_ranges_of_ports(tmp_path: Path) -> None:
    found = only(tmp_path, "ports: ['8000-8002:80-82', '53:53/udp', '9000-9005:90']").ports
    assert [(one.port, one.target) for one in found] == [(8000, 80), (8001, 81), (8002, 82), (9000, 90)]


@pytest.mark.parametrize(
    ("port", "problem"),
    [
        ("'8000-8001:1-3'", "2 ports are published for 3"),
        ("'9-8:9-8'", "the ports count backwards"),
        ("'1-60000:1-60000'", "more than anything serves"),
        ("'0:80'", "0 cannot be a port"),
        ("{published: 80}", "without its `target`"),
        ("[80]", "`ports` takes a list of texts, not a list"),
    ],
)
def test_ports_that_are_none(tmp_path: Path, port: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"docker-compose.yml:3: .*{problem}"):
        only(tmp_path, f"ports: [{port}]")


def test_volumes(tmp_path: Path) -> None:
    text = service(
        "volumes:\n- ./m:/models:ro\n- named:/data\n- /anonymous\n- {type: bind, source: /s, target: /t}\n"
        "- bound:/b\n- C:\\m:/w"
    )
    text += (
        "volumes:\n  named:\n  bound: {driver: local, driver_opts: {type: none, o: bind, device: /srv/b}}\n"
    )
    found = read(tmp_path, text)[0]["it"].mounts
    assert [one[:2] for one in found] == [
        ("./m", "/models"), ("named", "/data"), ("", "/anonymous"), ("/s", "/t"),
        ("/srv/b", "/b"), ("C:\\m", "/w"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number", "ids"),
    [
        ("gpus: all", None, []),
        ("gpus: 2", 2, []),
        ("gpus: [{count: 2}, {device_ids: ['3'], capabilities: [gpu]}]", 1, ["3"]),
        ("runtime: nvidia", None, []),
        ("deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all}]}}}", None, []),
        ("deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: 3}]}}}", 3, []),
        (
            "deploy: {resources: {reservations: {devices: [{capabilities: [gpu], device_ids: [a, b]}]}}}",
            2,
            ["a", "b"],
        ),
    ],
)
def test_gpus(tmp_path: Path, text: str, number: int | None, ids: list[str]) -> None:
    found = only(tmp_path, text).gpus
    assert found is not None
    assert (found.number, texts(found.ids)) == (number, ids)


def test_other_devices_are_no_gpus(tmp_path: Path) -> None:
    assert (
        only(tmp_path, "deploy: {resources: {reservations: {devices: [{capabilities: [tpu]}]}}}").gpus is None
    )
    assert only(tmp_path, "image: x").gpus is None


def test_extends(tmp_path: Path) -> None:
    services, _ = read(
        tmp_path,
        """
services:
  base:
    image: one
    command: [base]
    environment: {A: 1, B: 1}
    ports: ["1:1"]
  middle: {extends: base, environment: [B=2]}
  top:
    extends: {service: middle}
    image: two
    environment: {C: 3}
    ports: ["2:2"]
""",
    )
    top = services["top"]
    assert (top.image, texts(top.command)) == ("two", ["base"])
    assert {name: word.text for name, word in top.environment.items()} == {"A": "1", "B": "2", "C": "3"}
    assert [port.port for port in top.ports] == [1, 2]


def test_extends_in_a_circle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":2: `a` extends itself, by way of a, b"):
        read(tmp_path, "services:\n  a: {extends: b}\n  b: {extends: {service: a}}\n")
    with pytest.raises(ConfigError, match="takes a service's name"):
        read(tmp_path, "services:\n  a: {extends: [b]}\n")
    with pytest.raises(ConfigError, match="no service `ab` to extend") as refused:
        read(tmp_path, "services:\n  abc: {}\n  b: {extends: ab}\n")
    assert refused.value.hint == "did you mean `abc`?"


def test_env_files(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("A=1\nB=1\n")
    (tmp_path / "b.env").write_text("B=2\nC=$X\n")
    (tmp_path / ".env").write_text("X=9\n")
    text = "env_file: [a.env, {path: b.env}, {path: no.env, required: false}, gone.env]\nenvironment: {A: 5}"
    services, book = read(tmp_path, service(text))
    found = services["it"].environment
    assert {name: word.text for name, word in found.items()} == {"A": "5", "B": "2", "C": "9"}
    assert found["B"].place == Place(str(tmp_path / "b.env"), 1)
    assert [line.what for line in book.report()] == [
        "env_file `gone.env` is not there: what it sets is not known"
    ]


def test_a_missing_variable_is_told_once(tmp_path: Path) -> None:
    _, book = read(tmp_path, service("image: x:$TAG\ncommand: a ${TAG} ${MUST:?please}"))
    assert [(line.where.rpartition(":")[2], line.what) for line in book.report()] == [
        ("3", "variable `TAG` has no value (also line 4): it counts as empty"),
        ("4", "variable `MUST` has no value, and the file insists on one: it counts as empty"),
    ]


def test_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    text = "include: [a.yml]\nmodels: {m: {model: ai/smollm2}}\nservices:\n"
    text += "  a: {extends: {file: b.yml, service: c}}\n"
    _, book = read(tmp_path, text)
    assert [line.what for line in book.report()] == [
        "files of `include` are not read",
        "models of Docker's model runner are not read",
        "extends a service of another file: what it takes from there is not read",
    ]


def test_details(tmp_path: Path) -> None:
    found = only(tmp_path, "network_mode: host\nprofiles: [gpu]\ndeploy: {replicas: 3}\nbuild: .\n"
                 "healthcheck: {test: [CMD, x]}\npost_start: [{command: y z}]")  # fmt: skip
    assert (found.host_network, found.profiles, found.replicas, found.built) == (True, ("gpu",), 3, True)
    assert texts(found.others) == ["y", "z", "CMD", "x"]
    assert only(tmp_path, "scale: 0").replicas == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("image: [x]", r":3: `image` takes a text, not a list"),
        ("environment: {A: [1]}", r":3: `environment` takes a text for each variable, not a list"),
        ("environment: [{A: 1}]", r":3: `environment` takes a list of texts, not a mapping"),
        ("ports: ['a b:80:80']", r":3: `a b` is not an address"),
        ("ports: ['a/b:80:80']", r":3: `a/b` is not an address"),
        ("gpus: [x]", r":3: `devices` takes a list of mappings, not a text"),
        ("gpus: [{count: [1], capabilities: [gpu]}]", r":3: `count` takes a number or `all`, not a list"),
        ("gpus: many", r":3: `many` is not a whole number"),
        ("deploy: {resources: x}", r":3: `resources` takes a mapping, not a text"),
        ("entrypoint: {a: b}", r":3: `entrypoint` takes a text or a list, not a mapping"),
        ("env_file: [[a]]", r":3: `env_file` takes a list of texts, not a list"),
    ],
)
def test_values_of_the_wrong_kind(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        only(tmp_path, text)


def test_what_says_nothing(tmp_path: Path) -> None:
    found = only(
        tmp_path, "ports: [':']\npost_start: [x]\nenv_file: [{required: true}]\nenvironment:\ncommand:"
    )
    assert (found.ports, found.others, found.environment, found.words) == ((), (), {}, ())
    services, book = read(
        tmp_path, service("env_file: no.env\nenvironment: {A: }") + "  two: {env_file: no.env}\n"
    )
    assert services["it"].environment == {}
    assert len([line for line in book.report() if "no.env" in line.what]) == 1


def test_a_variable_may_be_set_by_a_file_and_named_again(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("A=1\n")
    services, book = read(tmp_path, service("env_file: a.env\nenvironment: [A]"))
    assert (services["it"].environment["A"].text, book.report()) == ("1", ())


def test_too_many_services(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="501 services are more than any stack has"):
        read(tmp_path, "services:\n" + "".join(f"  s{number}: {{}}\n" for number in range(501)))


def test_an_environment_that_is_no_list_of_texts_is_refused_when_it_is_joined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`environment` takes a list of texts"):
        read(tmp_path, "services:\n  a: {environment: {A: 1}}\n  b: {extends: a, environment: [[A]]}\n")


def test_an_error_shows_no_secret_of_the_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("API_KEY=sk-123456789\n")
    with pytest.raises(ConfigError) as refused:
        only(tmp_path, "ports: ['${API_KEY}']")
    assert refused.value.message.endswith("docker-compose.yml:3: `[hidden]` is not a port")
