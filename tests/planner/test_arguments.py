from __future__ import annotations

import pytest

from sovereign_ai.catalog.releases import release, releases, supported_arguments
from sovereign_ai.planner.arguments import engine_arguments, engine_environment
from sovereign_ai.planner.cpu import cpu_fit, need
from sovereign_ai.planner.embedding import fit_embedding
from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.sizing import Fit, fit
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Format
from tests.inventory.fakes import GIB, cpu, inventory
from tests.planner.models import LLAMA_3B, MINILM, NEMO, QWEN_7B, layout, rooms

PAIR = ("RTX 3080 10GB", "RTX 3080 10GB")
NEMO_WISH = Wish(model=NEMO, context=16_384)


def sized(wish: Wish, there: Layout, form: Format = "bfloat16", engine: str = "24.12") -> Fit:
    found = fit(wish, there, form, release(engine))
    assert isinstance(found, Fit), found
    return found


def test_two_cards_without_peers() -> None:
    found = sized(NEMO_WISH, layout(PAIR, tp=2), "w4a16")
    assert engine_arguments(NEMO_WISH, found, release("24.12")) == {
        "dtype": "auto",
        "gpu_memory_utilization": found.utilization,
        "tensor_parallel_size": 2,
        "max_model_len": 16_384,
        "max_num_seqs": found.rung.max_num_seqs,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 2048,
        "disable_custom_all_reduce": True,
        "disable_log_stats": False,
    }
    assert engine_environment(found) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "NCCL_P2P_DISABLE": "1"}


def test_a_bridged_pair_uses_its_bridge() -> None:
    found = sized(NEMO_WISH, layout(["RTX 3090"] * 2, tp=2, link="nvlink"))
    arguments = engine_arguments(NEMO_WISH, found, release("24.12"))
    assert "disable_custom_all_reduce" not in arguments
    assert engine_environment(found) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_a_card_alone_needs_no_all_reduce() -> None:
    wish = Wish(model=LLAMA_3B, context=8192)
    found = sized(wish, layout(["RTX 3090"]))
    arguments = engine_arguments(wish, found, release("24.12"))
    assert (arguments["dtype"], arguments["tensor_parallel_size"]) == ("bfloat16", 1)
    assert "pipeline_parallel_size" not in arguments
    assert engine_environment(found) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_a_pipeline_says_who_has_which_layers() -> None:
    wish = Wish(model=QWEN_7B, context=8192)
    found = sized(wish, layout(["RTX 3090", "RTX 3060 12GB"], pp=2))
    arguments, variables = engine_arguments(wish, found, release("24.12")), engine_environment(found)
    assert (arguments["pipeline_parallel_size"], arguments["tensor_parallel_size"]) == (2, 1)
    assert variables["VLLM_PP_LAYER_PARTITION"] == ",".join(map(str, found.partition))


def test_the_cache_is_named_in_bytes_where_that_is_known() -> None:
    wish = Wish(model=LLAMA_3B, context=8192)
    for engine, known in (("24.12", False), ("25.09", False), ("25.10", True)):
        found = sized(wish, layout(["RTX 3090"]), engine=engine)
        arguments = engine_arguments(wish, found, release(engine))
        assert arguments.get("kv_cache_memory_bytes") == (found.kv_bytes if known else None)


def test_bitsandbytes_is_asked_for() -> None:
    wish = Wish(model=LLAMA_3B, context=8192, formats=("bnb4",))
    arguments = engine_arguments(wish, sized(wish, layout(["RTX 3070"]), "bnb4"), release("24.12"))
    assert (arguments["quantization"], arguments["load_format"]) == ("bitsandbytes", "bitsandbytes")


def test_frugal_settings_are_asked_for() -> None:
    wish = Wish(model=LLAMA_3B, context=46_000)
    arguments = engine_arguments(wish, sized(wish, layout(["RTX 3060 12GB"])), release("24.12"))
    assert (arguments["enforce_eager"], arguments["max_num_batched_tokens"]) == (True, 512)


@pytest.mark.parametrize("engine", [one.name for one in releases()])
def test_no_release_gets_an_argument_that_it_does_not_know(engine: str) -> None:
    wish = Wish(model=LLAMA_3B, context=8192)
    arguments = engine_arguments(wish, sized(wish, layout(PAIR, tp=2), engine=engine), release(engine))
    assert set(arguments) <= supported_arguments(release(engine).vllm)
    assert None not in arguments.values()


def test_embedding_models_have_arguments_of_their_own() -> None:
    wish = Wish(model=MINILM)
    found = fit_embedding(wish, layout(["RTX 3070"]))
    assert isinstance(found, Fit)
    assert engine_arguments(wish, found, release("24.12")) == {"max_tokens": 256, "max_batch": 64}


def test_the_cpu_has_arguments_of_its_own() -> None:
    wish = Wish(model=LLAMA_3B, context=2048)
    there = Layout(rooms=rooms(inventory(cpu(free_bytes=30 * GIB))))
    arguments = engine_arguments(wish, cpu_fit(need(wish, 30 * GIB), there), release("24.12"))
    assert arguments["dtype"] == "float32"
    assert "tensor_parallel_size" not in arguments
