"""What is told of the stack as a whole: names, copies, the gateway, secrets; and any file at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from sovereign_ai.config import MODEL_NAME, load_factory
from sovereign_ai.errors import SovereignError
from sovereign_ai.migrate import migrate
from sovereign_ai.migrate.names import model_name, original, plain_name
from sovereign_ai.migrate.secrets import hidden
from tests.migrate.conftest import EXAMPLES, Move, service

FILES = sorted((EXAMPLES / "compose").glob("*/docker-compose.yml"))
VLLM = "image: vllm/vllm-openai\n"


def stack(*services: str) -> str:
    parts = [service(text, f"s{number}").partition("\n")[2] for number, text in enumerate(services)]
    return "services:\n" + "".join(parts)


# Names


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("models/Mistral-Nemo-Instruct-2407-Q4_K_M.gguf", ("Mistral-Nemo-Instruct-2407", "Q4_K_M")),
        ("a.IQ2_XXS.gguf", ("a", "IQ2_XXS")),
        ("big-BF16-00001-of-00003.gguf", ("big", "BF16")),
        ("org/Own-GGUF", ("Own", "")),
        ("UD.UD-Q4_K_XL.gguf", ("UD", "Q4_K_XL")),
        ("/data/model/", ("model", "")),
        ("gpt-oss-20b-mxfp4.gguf", ("gpt-oss-20b", "MXFP4")),
    ],
)
def test_plain_names(text: str, plain: tuple[str, str]) -> None:
    assert plain_name(text) == plain


@given(st.text(max_size=100))
def test_any_name_becomes_one_that_loads(text: str) -> None:
    assert MODEL_NAME.fullmatch(model_name(text))


def test_the_original_is_the_very_model() -> None:
    assert original("Mistral-Nemo-Instruct-2407-Q4_K_M.gguf") == "mistralai/Mistral-Nemo-Instruct-2407"
    assert original("Mistral-Nemo-Base-2407") is None
    assert original("nobody-knows") is None


def test_two_models_of_one_name(move: Move) -> None:
    moved = move(
        stack(VLLM + "command: a/X", VLLM + "command: b/X", VLLM + "command: c/X --served-model-name x")
    )
    assert [model.name for model in moved.models] == ["x", "x-s1", "x-s2"]
    assert "another model is called `x` already: this one is `x-s1`" in moved.text


def test_the_same_model_by_profiles_is_one(move: Move) -> None:
    moved = move(stack(VLLM + "command: a/X\nprofiles: [one]", VLLM + "command: a/X\nprofiles: [two]"))
    assert moved.model.replicas == 1
    assert "the same model as in `s0`, by a profile: one entry, one copy" in moved.told("assumed")


def test_the_same_model_otherwise_is_another(move: Move) -> None:
    moved = move(stack(VLLM + "command: a/X", VLLM + "command: a/X --max-model-len 512"))
    assert [model.name for model in moved.models] == ["x", "x-s1"]


def test_a_context_beyond_the_model_is_left_out(move: Move) -> None:
    moved = move(service(VLLM + "command: mistralai/Mistral-7B-Instruct-v0.3 --max-model-len 99999"))
    assert moved.model.context is None
    assert "context 99,999 of Mistral-7B-Instruct-v0.3 is left out: it was made for 32,768" in moved.text


# The gateway


@pytest.mark.parametrize(
    ("services", "listens", "why"),
    [
        ([VLLM + "command: a/X"], "127.0.0.1:8000", "no port of a model was published"),
        ([VLLM + "command: a/X\nports: ['9000:8000']"], "0.0.0.0:9000", "every address of the machine"),
        ([VLLM + "command: a/X\nports: ['10.0.0.5:9000:8000']"], "10.0.0.5:9000", "listens on 10.0.0.5"),
        ([VLLM + "command: a/X --port 7\nnetwork_mode: host"], "0.0.0.0:7", "it shares the host's network"),
        ([VLLM + "command: a/X\nports: ['1:1', '9000:8000']"], "0.0.0.0:9000", "listens at its port, 9000"),
        ([VLLM + "command: a/X\nports: ['8000']"], "127.0.0.1:8000", "one that Docker chose"),
        (
            [VLLM + "command: a/X --task embed\nports: ['1:8000']", VLLM + "command: a/Y\nports: ['2:8000']"],
            "0.0.0.0:2",
            "of 2 ports the one for chat",
        ),
        (
            [VLLM + "command: a/X\nports: ['1:8000']", VLLM + "command: a/Y\nports: ['2:8000']"],
            "0.0.0.0:1",
            "of 2 ports the first for chat",
        ),
        (
            [VLLM + "command: a/X\nports: ['1:8000']", "image: litellm\nports: ['4000:4000']"],
            "0.0.0.0:4000",
            "clients came through it",
        ),
    ],
)  # fmt: skip
def test_where_the_gateway_listens(move: Move, services: list[str], listens: str, why: str) -> None:
    moved = move(stack(*services))
    assert f"{moved.factory.gateway.host}:{moved.factory.gateway.port}" == listens
    assert why in moved.text


# Secrets


def test_no_secret_is_told(move: Move) -> None:
    moved = move(
        stack(
            VLLM + "command: a/X --api-key first-secret --hf-token=second-secret\n"
            "environment: {HF_TOKEN: third-secret, OTHER_PASSWORD: fourth-secret}",
            "image: alpine/first-secret\nentrypoint: [sh, -c, 'curl -H \"X: Bearer fifth-secret\" x']",
            "image: redis\nenvironment: {URL: 'redis://u:sixth-secret@h', NAME: sixth-secret}",
        ),
        _dot_env="LATER_API_KEY=seventh-secret\n",
    )
    whole = moved.text + moved.made.factory
    names = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
    assert [name for name in names if f"{name}-secret" in whole] == []
    assert "alpine/[hidden]" in whole
    assert "`HF_TOKEN`" in whole


def test_longer_secrets_are_hidden_first() -> None:
    assert hidden("abcdefgh abcdef", {"abcdef", "abcdefgh"}) == "[hidden] [hidden]"


def test_control_characters_are_not_told(move: Move) -> None:
    moved = move(service(VLLM + 'command: ["serve", "a/X", "--model", "b\\e[2J\\n/Y"]'))
    assert "\x1b" not in moved.text
    assert "b?[2J?/Y" in moved.text


# Any file


@settings(max_examples=60, deadline=None)
@given(
    value=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    key=st.sampled_from(["--model", "--served-model-name", "--max-model-len", "-q", "-tp", "--revision"]),
)
def test_any_value_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, value: str, key: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    compose = folder / "docker-compose.yml"
    command = ["--model", "a/B", key, value.replace("$", "$$")]
    with compose.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(
            {"services": {"s": {"image": "vllm", "command": command, "volumes": ["./x:/"]}}}, file
        )
    loads_or_refused(compose)


def loads_or_refused(compose: Path) -> None:
    before = compose.read_bytes()
    try:
        made = migrate(compose)
    except SovereignError as error:
        assert error.message
    else:
        if made.factory:
            written = compose.with_name("factory.yaml")
            written.write_text(made.factory, encoding="utf-8")
            assert tuple(model.name for model in load_factory(written).models) == made.models
    assert compose.read_bytes() == before


NOISE = [
    "",
    "-1",
    "0",
    "99999999999",
    "~",
    "[]",
    "{}",
    "null",
    '"\\ud83d"',
    "../..",
    "/",
    "C:\\x:/m",
    "${X}",
    "$$",
]
CHARACTERS = "\0\x1b\"'{}[]:,&*!|>%@`$#-0 \n\tZé\u2028\U0001f600"


def mutated(text: str, chance: random.Random, words: list[str]) -> str:
    """A line removed, doubled or shifted, a character put in or taken out, a word for another one."""
    lines = text.split("\n")
    at, place = chance.randrange(len(lines)), chance.randrange(len(text) or 1)
    match chance.randrange(7):
        case 0:
            return "\n".join(lines[:at] + lines[at + 1 :])
        case 1:
            return "\n".join([*lines[:at], chance.choice(lines), *lines[at:]])
        case 2:
            return "\n".join(
                [*lines[:at], " " * chance.choice([2, 4, 6]) + lines[at].strip(), *lines[at + 1 :]]
            )
        case 3:
            return text[:place] + chance.choice(CHARACTERS) + text[place:]
        case 4:
            return text[:place] + text[place + 1 :]
        case 5:
            return text.replace(chance.choice(words), chance.choice(words), chance.randint(1, 3))
    return text.replace(chance.choice(words), chance.choice(NOISE), 1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_mutations_end_in_a_result_or_an_error(tmp_path: Path, file: Path) -> None:
    chance = random.Random(f"{file.parent.name}")
    words = sorted({word for one in FILES for word in one.read_text().split()})
    compose = tmp_path / "docker-compose.yml"
    for _ in range(40):
        text = file.read_text()
        for _ in range(chance.randint(1, 6)):
            text = mutated(text, chance, words)
        compose.write_text(text, encoding="utf-8")
        loads_or_refused(compose)


# What else is told


def test_three_models_of_one_name_in_one_service(move: Move) -> None:
    names = "a:1,b/a:1,c/a:1"
    moved = move(service(f"image: ollama/ollama\nenvironment: {{OLLAMA_MODEL: '{names}'}}"))
    assert [model.name for model in moved.models] == ["a-1", "a-1-it", "a-1-it-2"]


def test_cards_of_amd(move: Move) -> None:
    moved = move(service("image: vllm/vllm-openai-rocm\ncommand: a/X"))
    assert "an image for AMD's cards" in moved.text


@pytest.mark.parametrize("source", ["~nobody-here/m", "~/m", "/" + "x" * 5000])
def test_paths_that_are_odd(move: Move, source: str) -> None:
    moved = move(service(VLLM + f"volumes: ['{source}:/m']\ncommand: /m/x"))
    assert moved.models == () or "is not there" in moved.text


def test_a_path_with_a_nul(move: Move) -> None:
    moved = move(service(VLLM + 'volumes: ["./a:/m"]\ncommand: ["/m/x\\0y"]'))
    assert "holds a NUL character" in moved.text


def test_code_of_a_model_needs_a_word_of_its_own(move: Move) -> None:
    image = "image: ghcr.io/huggingface/text-generation-inference\n"
    assert "remote_code: true" in move(service(image + "command: --model-id a/X --trust-remote-code")).text
    webui = "image: oobabooga\nvolumes: ['./m:/app/models']\n"
    moved = move(
        service(webui + "command: python server.py --model x --trust-remote-code --model-dir /app/models")
    )
    assert "remote_code: true" in moved.text


def test_a_task_that_is_not_served(move: Move) -> None:
    assert "task `score` is not served" in move(service(VLLM + "command: a/X --task score")).text


def test_settings_that_contradict_each_other(move: Move) -> None:
    text = "image: llama.cpp\nvolumes: ['./m:/m']\nenvironment: {LLAMA_ARG_MODEL: /m/a.gguf}\n"
    moved = move(service(text + "command: -m /m/b.gguf"))
    assert moved.model.name == "b"
    assert "`LLAMA_ARG_MODEL` and `-m` say different things: the later one counts" in moved.told("assumed")


def test_localai_in_other_folders(move: Move) -> None:
    text = "image: localai/localai\nvolumes: ['./own:/elsewhere']\nenvironment: {MODELS_PATH: /elsewhere/}\n"
    files = {"own__a_dot_yaml": "name: a\nparameters: {model: folder}\n", "own__b_dot_yaml": "name: b\n"}
    files |= {"own__c_dot_yaml": "name: c\nparameters: {model: 'ollama://c'}\n", "own__d_dot_yaml": "[]\n"}
    files |= {"own__e_dot_yaml": "name: e\nparameters: {model: /nowhere/e.gguf}\n"}
    moved = move(service(text), **files)
    assert [(model.name, model.source.rpartition("/")[2]) for model in moved.models] == [
        ("a", "folder"), ("c", "ollama:c"),
    ]  # fmt: skip
    assert "`/nowhere/e.gguf` is in no volume" in moved.text


def test_a_script_without_end(move: Move) -> None:
    script = "for x in " + "y " * 900 + "; do ollama pull $$x; ollama pull z$$x; done"
    script += "; for x in " + "v " * 900 + "; do ollama pull $$x; done" * 3
    moved = move(service(f"image: ollama/ollama\nentrypoint: [sh, -c, '{script}']"))
    assert "ollama:y" in [model.source for model in moved.models]
