"""Each kind of service: what carries over, and what is told of the rest."""

from __future__ import annotations

import pytest

from sovereign_ai.errors import ConfigError
from tests.migrate.conftest import Move, service

LLAMA = "image: ghcr.io/ggml-org/llama.cpp:server-cuda\nvolumes: ['./models:/models']\n"
VLLM = "image: vllm/vllm-openai:v0.8.5\n"
TEI = "image: ghcr.io/huggingface/text-embeddings-inference:1.6\n"
WEBUI = "image: atinoda/text-generation-webui:default\nvolumes: ['./m:/app/models']\n"
LOCALAI = "image: localai/localai:latest\nvolumes: ['./models:/models']\n"
OLLAMA = "image: ollama/ollama\nvolumes: ['./ollama:/root/.ollama']\n"


# llama.cpp


@pytest.mark.parametrize(
    "text",
    [
        LLAMA + "command: -m /models/a.gguf -c 8192 -np 4",
        LLAMA + "command: [--model, /models/a.gguf, --ctx-size=8192, --parallel, '4']",
        LLAMA + "command: [--model, /models/sub/../a.gguf, --ctx_size, '8192', --parallel, '4']",
        LLAMA
        + "environment: {LLAMA_ARG_MODEL: /models/a.gguf, LLAMA_ARG_CTX_SIZE: 8192, LLAMA_ARG_N_PARALLEL: 4}",
        LLAMA
        + "environment: {LLAMA_ARG_MODEL: /models/b.gguf}\ncommand: -m /models/a.gguf -c 1 -c 8192 -np 4",
        LLAMA + "entrypoint: sh -c\ncommand: ['cd / && exec ./llama-server -m /models/a.gguf -c 8192 -np 4']",
        "image: x\nvolumes: ['./models:/models']\ncommand: /bin/llama-server -m /models/a.gguf -c 8192 -np 4",
        "image: ghcr.io/ggerganov/llama.cpp:full\nvolumes: ['./models:/app/models']\n"
        "command: --server -m models/a.gguf -c 8192 -np 4",
    ],
)
def test_llama_cpp(move: Move, text: str) -> None:
    moved = move(service(text))
    model = moved.model
    assert (model.name, model.source) == ("a", f"file:{moved.folder}/models/a.gguf")
    assert (model.context, model.concurrency) == (2048, 4)


def test_llama_cpps_cache_in_one(move: Move) -> None:
    moved = move(service(LLAMA + "command: -m /models/a.gguf -c 8192 -np 4 --kv-unified"))
    assert (moved.model.context, moved.model.concurrency) == (8192, 1)
    assert "4 requests shared one cache" in moved.text


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", "no context is given"),
        ("-c 0", "context 0 was the model's own"),
        ("-c 32 -np 8", "a context of 4 tokens is too small"),
        ("-np -1 -c 4096", "context 4,096"),
    ],
)
def test_llama_cpps_context(move: Move, more: str, told: str) -> None:
    moved = move(service(LLAMA + f"command: -m /models/a.gguf {more}"))
    assert moved.model.context in (None, 4096)
    assert told in moved.text


@pytest.mark.parametrize(
    ("command", "source"),
    [
        ("-hf bartowski/Mistral-Nemo-Instruct-2407-GGUF:Q4_K_M", "hf:mistralai/Mistral-Nemo-Instruct-2407"),
        ("-hf mistralai/Mistral-Nemo-Base-2407-GGUF", "hf:mistralai/Mistral-Nemo-Base-2407-GGUF"),
        ("-hf acme/Own-GGUF -hff own-Q5_K_M.gguf", "hf:acme/Own-GGUF"),
        (
            "-mu https://huggingface.co/unsloth/Qwen3-8B-GGUF/resolve/main/Qwen3-8B-Q6_K.gguf?download=true",
            "hf:Qwen/Qwen3-8B",
        ),
    ],
)
def test_llama_cpp_from_the_hub(move: Move, command: str, source: str) -> None:
    """A base model is not the one that was tuned from it, though their shapes are the same."""
    moved = move(service(LLAMA + f"command: {command} -c 4096"))
    assert moved.model.source == source


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LLAMA + "command: -c 4096", "no model is named"),
        (LLAMA + "command: -m /other/a.gguf", "`/other/a.gguf` is in no volume"),
        (LLAMA + "command: -mu https://example.com/a.gguf", "a model at an address of the web"),
        (LLAMA + "command: -m /models/a.gguf --reranking", "the gateway has no /rerank"),
        (LLAMA + "command: -hf nonsense", "`nonsense` is not a hub name"),
        ("image: llama.cpp\nvolumes: ['v:/models']\ncommand: -m /models/a.gguf", "Docker's volume `v`"),
        (
            "image: llama.cpp\nvolumes: ['~bob/v:/models']\ncommand: -m /models/a.gguf",
            "Docker's volume `~bob/v`",
        ),
        ("image: llama.cpp\nvolumes: [/models]\ncommand: -m /models/a.gguf", "a volume without a name"),
        (LLAMA + "command: -m /models/a.gguf\nscale: 0", "switched off"),
    ],
)
def test_llama_cpp_that_cannot_be_carried(move: Move, text: str, told: str) -> None:
    moved = move(service(text))
    assert moved.models == ()
    assert told in "\n".join(moved.told("not_carried"))


def test_a_gguf_names_its_original(move: Move) -> None:
    moved = move(service(LLAMA + "command: -m /models/Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf"))
    _, told = moved.line("changed", "becomes SafeTensors")
    assert "(Q4_K_M)" in told
    assert "hf:meta-llama/Llama-3.1-8B-Instruct" in told


# vLLM


@pytest.mark.parametrize(
    "text",
    [
        "command: --model a/B --max-model-len 4096",
        "command: a/B --max-model-len=4096",
        "command: [serve, a/B, --max_model_len, '4096']",
        "command: vllm serve a/B --max-model-len 4096",
        "entrypoint: python -m vllm.entrypoints.openai.api_server\ncommand: --model a/B --max-model-len 4096",
        "command: sh -c 'vllm serve a/B --max-model-len 4096'",
        "environment: {M: a/B}\nentrypoint: [bash, -c, 'exec vllm serve $$M --max-model-len 4096']",
    ],
)
def test_vllm(move: Move, text: str) -> None:
    moved = move(service(VLLM + text))
    assert (moved.model.name, moved.model.source, moved.model.context) == ("b", "hf:a/B", 4096)


@pytest.mark.parametrize(
    ("said", "tokens"), [("32k", 32000), ("32K", 32768), ("1M", 1048576), ("4096", 4096)]
)
def test_vllms_lengths(move: Move, said: str, tokens: int) -> None:
    assert move(service(VLLM + f"command: a/B --max-model-len {said}")).model.context == tokens


@pytest.mark.parametrize(
    ("said", "formats"),
    [("awq", ("awq",)), ("gptq_marlin", ("gptq",)), ("fp8", ("fp8",)), ("bitsandbytes", ("bnb4",)),
     ("compressed-tensors", ()), ("aqlm", ())],
)  # fmt: skip
def test_vllms_quantization(move: Move, said: str, formats: tuple[str, ...]) -> None:
    moved = move(service(VLLM + f"command: a/B -q {said}"))
    assert moved.model.quantization == formats
    assert said in moved.text or formats


def test_vllms_other_settings(move: Move) -> None:
    moved = move(
        service(
            VLLM + "command: a/B --revision v1 --served-model-name B-Chat other --data-parallel-size 2 "
            "--max-num-seqs 8 --trust-remote-code --task embed --frobnicate secretvalue"
        )
    )
    model = moved.model
    assert (model.name, model.source, model.replicas) == ("b-chat", "hf:a/B@v1", 2)
    assert (model.task, model.concurrency, model.remote_code) == ("embed", 1, False)
    for told in (
        "`B-Chat`",
        "`other`",
        "promises nobody a full context",
        "`--frobnicate`",
        "remote_code: true",
    ):
        assert told in moved.text
    assert "secretvalue" not in moved.text


def test_vllm_with_two_models(move: Move) -> None:
    moved = move(service(VLLM + "command: serve a/B --model c/D"))
    assert moved.model.source == "hf:a/B"
    assert "a second model `c/D`" in moved.text


def test_vllm_of_a_folder(move: Move) -> None:
    moved = move(service(VLLM + "volumes: ['/srv/own:/own']\ncommand: --model /own/model"))
    assert (moved.model.source, moved.model.name) == ("file:/srv/own/model", "model")
    assert "/srv/own/model is not there" in moved.text


def test_vllm_by_a_variable_that_no_option_uses(move: Move) -> None:
    moved = move(service(VLLM + "environment: {MODEL: a/B}"))
    assert moved.model.source == "hf:a/B"
    assert "taken from the variable `MODEL`" in "\n".join(moved.told("assumed"))


@pytest.mark.parametrize(
    "command", ["", "serve", "--model ${NO}", "gpt2", "s3://bucket/model", "--task score"]
)
def test_vllm_without_a_model(move: Move, command: str) -> None:
    moved = move(service(VLLM + f"command: {command}"))
    assert moved.models == ()
    assert moved.told("not_carried")


# Ollama


@pytest.mark.parametrize(
    "text",
    [
        OLLAMA + "environment: {OLLAMA_MODEL: 'llama3.1:8b'}",
        OLLAMA + "environment: ['OLLAMA_PULL_MODELS=llama3.1:8b']",
        OLLAMA + "entrypoint: [sh, -c, 'ollama serve & sleep 2; ollama pull llama3.1:8b; wait']",
        OLLAMA + "healthcheck: {test: 'ollama list | grep x || ollama run llama3.1:8b hello'}",
        OLLAMA + "healthcheck: {test: [CMD-SHELL, 'ollama list | grep x || ollama pull llama3.1:8b']}",
        OLLAMA + "post_start: [{command: [ollama, pull, 'llama3.1:8b']}]",
    ],
)
def test_ollama(move: Move, text: str) -> None:
    moved = move(service(text))
    assert (moved.model.name, moved.model.source) == ("llama3.1-8b", "ollama:llama3.1:8b")
    assert "OLLAMA_MODELS=./ollama/models" in moved.text
    assert "clients asked for `llama3.1:8b`" in moved.text


@pytest.mark.parametrize(
    "helper",
    [
        "{image: ollama/ollama, command: [pull, 'x:1']}",
        "{image: ollama/ollama, entrypoint: sh -c 'ollama pull x:1'}",
        "{image: docker, command: docker exec it ollama pull x:1}",
        '{image: curlimages/curl, command: [http://it:11434/api/pull, -d, \'{"name": "x:1"}\']}',
        "{image: alpine, command: [sh, -c, 'curl it:11434/api/pull -d \"{''model'': ''x:1''}\"']}",
    ],
)
def test_ollama_with_a_helper(move: Move, helper: str) -> None:
    moved = move(service(OLLAMA + "environment: {OLLAMA_NUM_CTX: 4096}") + f"  helper: {helper}\n")
    assert (moved.model.source, moved.model.context) == ("ollama:x:1", 4096)
    assert "see service `it`" in moved.text


def test_two_ollamas_with_helpers(move: Move) -> None:
    text = (
        service(OLLAMA, "one")
        + "  two: {image: ollama/ollama, environment: {OLLAMA_CONTEXT_LENGTH: 8192}}\n"
        + "  h: {image: ollama/ollama, environment: {OLLAMA_HOST: 'two:11434'}, command: pull x}\n"
    )
    moved = move(text)
    assert (moved.model.source, moved.model.context) == ("ollama:x", 8192)
    assert "it pulls models for `two`, one of 2" in moved.text


def test_models_for_an_ollama_elsewhere(move: Move) -> None:
    moved = move("services:\n  h: {image: alpine/ollama-cli, command: ollama pull x}\n")
    assert moved.model.source == "ollama:x"
    assert "an Ollama that is not in this file" in moved.text


def test_ollamas_settings(move: Move) -> None:
    names = ["OLLAMA_MODELS=/root/.ollama/models", "OLLAMA_MODEL=a,b:latest", "OLLAMA_NUM_PARALLEL=3"]
    moved = move(service(OLLAMA + f"environment: {[*names, 'OLLAMA_KEEP_ALIVE=-1']}"))
    assert [model.source for model in moved.models] == ["ollama:a", "ollama:b"]
    assert [model.concurrency for model in moved.models] == [3, 3]
    assert "`OLLAMA_KEEP_ALIVE`: every model that has a place stays loaded" in moved.text


def test_ollama_of_the_hub(move: Move) -> None:
    moved = move(service(OLLAMA + "command: [run, 'hf.co/bartowski/Own-GGUF:Q4_K_M']"))
    assert (moved.model.source, moved.model.name) == ("ollama:hf.co/bartowski/Own-GGUF:Q4_K_M", "own")


def test_a_name_that_is_none_of_ollamas(move: Move) -> None:
    moved = move(service(OLLAMA + "environment: {OLLAMA_MODEL: 'a b:c:d'}"))
    assert [model.source for model in moved.models] == ["ollama:a"]
    assert "`b:c:d` is not a name that `ollama:` takes" in moved.text


# text-generation-webui


@pytest.mark.parametrize("name", ["CLI_ARGS", "EXTRA_LAUNCH_ARGS"])
def test_webui(move: Move, name: str) -> None:
    moved = move(
        service(
            WEBUI + f"environment:\n- {name}=--model a.gguf --n_ctx 4096 --tensor-split 1,1 --api-port 5005"
        )
    )
    assert (moved.model.name, moved.model.context) == ("a", 4096)
    assert moved.model.source == f"file:{moved.folder}/m/a.gguf"


@pytest.mark.parametrize(
    ("command", "formats"),
    [
        ("--model own-awq --loader AutoAWQ", ("awq",)),
        ("--model own --loader Transformers --load-in-4bit", ("bnb4",)),
        ("--model own-GPTQ --loader ExLlamav2", ()),
        ("--model own --load-in-8bit", ()),
        ("--model own --loader llama.cpp", ()),
    ],
)
def test_webuis_formats(move: Move, command: str, formats: tuple[str, ...]) -> None:
    moved = move(service(WEBUI + f"command: python3 server.py {command}"))
    assert moved.model.quantization == formats


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--api", "no model is named: it was chosen in the page"),
        ("--model X-exl2 --loader exllamav2", "is for ExLlama"),
        ("--model own --loader ExLlamav3_HF", "is for ExLlama"),
    ],
)
def test_webui_that_cannot_be_carried(move: Move, command: str, told: str) -> None:
    moved = move(service(WEBUI + f"command: python server.py {command}"))
    assert moved.models == ()
    assert told in moved.text


def test_webuis_open_quote(move: Move) -> None:
    with pytest.raises(ConfigError, match=r":6: `CLI_ARGS` has a quote"):
        move(service(WEBUI + "environment:\n- CLI_ARGS=--model 'a"))


# LocalAI


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("huggingface://bartowski/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf", "hf:Qwen/Qwen3-8B"),
        ("ollama://gemma2:9b", "ollama:gemma2:9b"),
        ("phi-4", "hf:microsoft/phi-4"),
    ],
)
@pytest.mark.parametrize("form", ["command: [run, '{}']", "command: ['{}']", "environment: {{MODELS: '{}'}}"])
def test_localai(move: Move, word: str, source: str, form: str) -> None:
    assert move(service(LOCALAI + form.format(word))).model.source == source


def test_localais_files(move: Move) -> None:
    own = "name: own\ncontext_size: 4096\nparameters: {model: own.gguf}\ntemplate: {chat: '{{.Input}} $'}\n"
    other = "name: other\nparameters: {model: a/B}\nquantization: awq\ntensor_parallel_size: 2\n"
    moved = move(
        service(LOCALAI), models__own_dot_yaml=own, models__other_dot_yml=other, models__x_dot_yaml="["
    )
    assert {model.name: model.source for model in moved.models} == {
        "own": f"file:{moved.folder}/models/own.gguf", "other": "hf:a/B",
    }  # fmt: skip
    assert {model.name: model.quantization for model in moved.models}["other"] == ("awq",)
    assert "not read: " in moved.text


def test_localais_preloaded_models(move: Move) -> None:
    moved = move(
        service(LOCALAI + """environment: {PRELOAD_MODELS: '[{"url": "ollama://x", "name": "n"}, 3]'}""")
    )
    assert moved.model.source == "ollama:x"
    with pytest.raises(ConfigError, match="is not JSON"):
        move(service(LOCALAI + "environment: {PRELOAD_MODELS: '[{'}"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LOCALAI, "no model is named"),
        (LOCALAI + "command: [unknown-model]", "a name of LocalAI's gallery"),
        ("image: localai/localai:latest-aio-gpu", "brings models of its own"),
        ("image: localai/localai\nvolumes: ['v:/models']", "YAML files in Docker's volume `v`"),
    ],
)
def test_localai_that_cannot_be_carried(move: Move, text: str, told: str) -> None:
    moved = move(service(text))
    assert moved.models == ()
    assert told in moved.text


# Hugging Face


@pytest.mark.parametrize(
    "text", ["command: --model-id a/B --revision r", "environment: {MODEL_ID: a/B, REVISION: r}"]
)
def test_embeddings(move: Move, text: str) -> None:
    model = move(service(TEI + text)).model
    assert (model.name, model.source, model.task) == ("b", "hf:a/B@r", "embed")


def test_embeddings_that_cannot_be_carried(move: Move) -> None:
    assert "no /rerank" in move(service(TEI + "command: --model-id a/x-Reranker")).text
    assert "no model is named" in move(service(TEI)).text


def test_generation(move: Move) -> None:
    image = "image: ghcr.io/huggingface/text-generation-inference:3\n"
    moved = move(
        service(image + "command: --model-id a/B --quantize eetq --max-total-tokens 4096 --num-shard 2")
    )
    assert (moved.model.context, moved.model.quantization) == (4096, ())
    assert "2 cards at once" in moved.text
    assert "no context is given" in move(service(image + "environment: {MODEL_ID: a/B}")).text


# Others


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ("ghcr.io/open-webui/open-webui:main", "a page for chatting"),
        ("docker.io/library/redis:7-alpine", "it keeps data"),
        ("nginx", "a web server"),
        ("localhost:5000/berriai/litellm", "a proxy before the models"),
        ("qdrant/qdrant:v1", "a database of vectors"),
        ("containrrr/watchtower@sha256:00", "it replaces images"),
        ("acme/own", None),
    ],
)
def test_other_services(move: Move, image: str, what: str | None) -> None:
    moved = move(service(VLLM + "command: a/B") + f"  other: {{image: '{image}'}}\n")
    told = [line for line in moved.made.report if line.service == "other"]
    assert len(told) == 1
    assert told[0].what.startswith(what or "not a kind that is known here")
    assert told[0].kind == "not_carried"
