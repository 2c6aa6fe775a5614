"""Memory of one rank: numbers known from published models and logs, and laws that every shape must keep."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_ai.catalog.releases import VllmVersion
from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.planner import memory
from sovereign_ai.planner.memory import GIB, LOADING_SHARE, Rank, gib, gib2
from sovereign_ai.spec import Format, Shape
from tests.planner.models import LLAMA_3B_SHAPE, NEMO_SHAPE, SMOL_SHAPE

V0, V1, NEW = (VllmVersion.parse(text) for text in ("0.5.5", "0.8.5", "0.24.0"))


def known(name: str) -> Shape:
    found = find_shape(name)
    assert found is not None
    return found.shape


def rank(shape: Shape = NEMO_SHAPE, form: Format = "bfloat16", **settings: object) -> Rank:
    made = Rank(shape=shape, format=form, vllm=V0, v1=False, batched_tokens=2048, max_num_seqs=64)
    return msgspec.structs.replace(made, **settings)


def shapes() -> st.SearchStrategy[Shape]:
    return st.builds(
        Shape,
        architecture=st.just("LlamaForCausalLM"),
        parameters=st.integers(10**7, 10**11),
        layers=st.integers(1, 100),
        hidden=st.sampled_from([512, 2048, 5120]),
        heads=st.just(32),
        kv_heads=st.sampled_from([1, 4, 8, 32]),
        head_dim=st.sampled_from([64, 128]),
        intermediate=st.sampled_from([2048, 14336]),
        vocabulary=st.integers(1000, 150_000),
        context_max=st.integers(256, 131_072),
        tied_head=st.booleans(),
        sliding_window=st.sampled_from([0, 1024, 4096]),
        sliding_layers=st.just(0),
    )


@st.composite
def ranks(draw: st.DrawFn) -> Rank:
    shape = draw(shapes())
    sliding = draw(st.integers(0, shape.layers)) if shape.sliding_window else 0
    return Rank(
        shape=msgspec.structs.replace(shape, sliding_layers=sliding),
        format=draw(st.sampled_from(["bfloat16", "fp8", "w4a16", "bnb4"])),
        vllm=draw(st.sampled_from([V0, V1, NEW])),
        v1=draw(st.booleans()),
        batched_tokens=draw(st.sampled_from([512, 2048])),
        max_num_seqs=draw(st.integers(1, 256)),
        tp=draw(st.sampled_from([1, 2, 4])),
    )


def test_bytes_as_people_read_them() -> None:
    assert (gib(12_281_336_832), gib2(12_281_336_832)) == ("11.4 GiB", "11.44 GiB")


def test_mistral_nemo_in_bfloat16() -> None:
    rope = memory.rope_cache_bytes(NEMO_SHAPE, 2)
    assert rope / GIB == pytest.approx(0.031, abs=0.001)
    assert (memory.weights_bytes(rank()) - rope) / (1 + LOADING_SHARE) == pytest.approx(
        22.81 * GIB, rel=0.001
    )
    assert memory.checkpoint_bytes(rank()) == 2 * NEMO_SHAPE.parameters + rope


@pytest.mark.parametrize(
    ("form", "gib_a_card"),
    [("bfloat16", 11.44), ("fp8", 6.36), ("int8", 6.36), ("w4a16", 3.90), ("awq", 3.92)],
)
def test_mistral_nemo_on_two_cards(form: Format, gib_a_card: float) -> None:
    assert memory.checkpoint_bytes(rank(form=form, tp=2)) / GIB == pytest.approx(gib_a_card, abs=0.005)


def test_kv_cache_of_known_models() -> None:
    assert memory.kv_bytes_per_token(NEMO_SHAPE, 2) == 163_840
    assert memory.kv_bytes_per_token(SMOL_SHAPE, 4) == 46_080
    assert memory.rank_kv_bytes_per_token(rank(tp=2)) == 81_920


def test_no_rank_holds_less_than_one_kv_head() -> None:
    assert memory.layer_kv_bytes(rank(tp=16)) == memory.layer_kv_bytes(rank(tp=8)) == 2 * 128 * 2


def test_all_but_embedding_and_head_are_quantized() -> None:
    assert memory.linear_parameters(NEMO_SHAPE) == NEMO_SHAPE.parameters - 2 * 131_072 * 5120
    assert memory.linear_parameters(LLAMA_3B_SHAPE) == LLAMA_3B_SHAPE.parameters - 128_256 * 3072
    assert memory.linear_parameters(msgspec.structs.replace(NEMO_SHAPE, parameters=1000)) == 0


def test_full_formats_are_as_wide_as_the_rank_computes() -> None:
    wide = memory.checkpoint_bytes(rank(SMOL_SHAPE, "float32", width=4))
    assert wide == 4 * SMOL_SHAPE.parameters + memory.rope_cache_bytes(SMOL_SHAPE, 4)


def test_a_split_table_is_padded_on_every_rank() -> None:
    odd = msgspec.structs.replace(SMOL_SHAPE, vocabulary=49_153)
    rows = (memory.checkpoint_bytes(rank(odd, tp=2)) - memory.checkpoint_bytes(rank(SMOL_SHAPE, tp=2))) / (
        2 * 576
    )
    # 24,577 rows a rank become 24,640; the linear layers are a row's half less
    assert rows == pytest.approx(64 - 0.5)


def test_bitsandbytes_loads_a_tied_head_a_second_time() -> None:
    table = 128_256 * 3072 * 2
    untied = msgspec.structs.replace(
        LLAMA_3B_SHAPE, tied_head=False, parameters=LLAMA_3B_SHAPE.parameters + table // 2
    )
    assert memory.weights_bytes(rank(LLAMA_3B_SHAPE, "bnb4")) == memory.weights_bytes(rank(untied, "bnb4"))
    assert memory.checkpoint_bytes(rank(untied)) - memory.checkpoint_bytes(rank(LLAMA_3B_SHAPE)) == table


def test_windows_are_kept_apart_from_full_layers_since_0_10() -> None:
    gemma = known("gemma-2-9b")
    tokens, window = 8192, 4096 + 2048
    layer = memory.layer_kv_bytes(rank(gemma))
    assert memory.kv_bytes_of_sequence(rank(gemma), tokens, block=16) == 42 * tokens * layer
    assert (
        memory.kv_bytes_of_sequence(rank(gemma, vllm=NEW), tokens, block=16) == 21 * (tokens + window) * layer
    )


def test_a_model_of_windows_alone_never_keeps_more() -> None:
    mistral = rank(known("mistral-7b-v0.1"))
    full = memory.kv_bytes_of_sequence(mistral, 32_768, block=16)
    assert full == memory.kv_bytes_of_sequence(mistral, 6144, block=16)


def test_blocks_are_whole() -> None:
    of = [memory.kv_bytes_of_sequence(rank(), tokens, block=16) for tokens in (1, 16, 17)]
    assert of == [16 * 163_840, 16 * 163_840, 32 * 163_840]


def test_no_room_for_tokens() -> None:
    assert memory.kv_tokens(rank(), 16 * 163_840, context=8192, block=16) == 0
    assert memory.kv_tokens(rank(), -1, context=8192, block=16) == 0


def test_the_layers_peak() -> None:
    """3·14,336 + 3·5,120 numbers a token at TP=1, of 2 bytes; only the first term is split."""
    made = rank(vllm=V1, v1=True, max_num_seqs=1)
    assert memory.activation_bytes(made) == 2048 * 2 * (3 * 14_336 + 3 * 5120)
    split = msgspec.structs.replace(made, tp=2)
    assert memory.activation_bytes(split) == 2048 * 2 * (3 * 7168 + 3 * 5120)


def test_experts_keep_their_rows_apart() -> None:
    mixtral = rank(known("mixtral-8x7b"), vllm=V1, v1=True, max_num_seqs=1)
    assert memory.activation_bytes(mixtral) == 2048 * 2 * (2 * (3 * 14_336 + 4096) + 3 * 4096)


def test_the_sampler_of_v0_peaks_on_one_rank() -> None:
    made = rank(vllm=VllmVersion.parse("0.6.5"), max_num_seqs=256)
    assert memory.activation_bytes(made) == int(9.8 * 256 * 131_072 * 4)
    for other in ({"lead": False}, {"last": False}):
        assert (
            memory.activation_bytes(msgspec.structs.replace(made, **other))
            < memory.activation_bytes(made) / 2
        )
    assert memory.activation_bytes(msgspec.structs.replace(made, tp=4)) == memory.activation_bytes(made)


def test_v1_samples_on_every_rank() -> None:
    made = rank(vllm=V1, v1=True, max_num_seqs=256, lead=False)
    assert memory.activation_bytes(made) == int(2.2 * 256 * 131_072 * 4)


def test_reserved_memory_counted_before_0_6_4() -> None:
    early, later = (rank(vllm=VllmVersion.parse(text)) for text in ("0.6.3", "0.6.4"))
    assert memory.activation_bytes(early) == int(1.84 * 9.8 * 64 * 131_072 * 4)
    assert memory.activation_bytes(later) == int(9.8 * 64 * 131_072 * 4)


def test_only_the_first_rank_of_v1_profiles_an_image() -> None:
    sees = rank(known("qwen2.5-vl-7b"), vllm=V1, v1=True)
    blind = memory.activation_bytes(msgspec.structs.replace(sees, first=False))
    assert memory.activation_bytes(sees) > 2 * blind
    assert memory.activation_bytes(
        msgspec.structs.replace(sees, vllm=V0, v1=False)
    ) < memory.activation_bytes(sees)


def test_what_the_budget_counts_and_what_it_does_not() -> None:
    alone, early = rank(), rank(tp=2)
    late = rank(tp=2, vllm=NEW)
    inside = [memory.inside_bytes(one) for one in (alone, early, late)]
    assert inside == [memory.NON_TORCH_BYTES, memory.NCCL_BYTES, memory.NON_TORCH_BYTES]
    outside = [
        memory.outside_bytes(one, 10 * GIB) - memory.CUDA_CONTEXT_BYTES for one in (alone, early, late)
    ]
    assert outside == [0, 0, memory.NCCL_BYTES]
    assert memory.outside_bytes(rank(pp=2, vllm=NEW), 80 * GIB) == (
        memory.CUDA_CONTEXT_LARGE_BYTES + memory.NCCL_BYTES
    )


def test_graphs() -> None:
    assert memory.graphs_bytes(rank(eager=True)) == 0
    assert memory.graphs_bytes(rank(max_num_seqs=256)) / GIB == pytest.approx(0.7)
    assert memory.graphs_bytes(rank(max_num_seqs=1000)) == memory.graphs_bytes(rank(max_num_seqs=256))
    assert memory.graphs_bytes(rank(max_num_seqs=8)) / GIB == pytest.approx(0.2 + 0.5 * 4 / 35)
    four = {peers: memory.graphs_bytes(rank(max_num_seqs=256, tp=4, peers=peers)) for peers in (True, False)}
    assert four[True] / GIB == pytest.approx(0.7)
    assert four[False] / GIB == pytest.approx(2.41, rel=0.05)


def test_what_a_budget_leaves() -> None:
    made = rank(LLAMA_3B_SHAPE)
    taken = memory.weights_bytes(made) + memory.activation_bytes(made) + memory.inside_bytes(made)
    assert memory.kv_budget(made, 10 * GIB, 0.9) == 9 * GIB - taken
    assert memory.kv_budget(rank(), 10 * GIB, 0.9) < 0


def taken(made: Rank, context: int, sequences: int) -> int:
    kv = memory.kv_bytes_for_context(made, context, sequences=sequences, block=16)
    return memory.weights_bytes(made) + memory.activation_bytes(made) + kv


@settings(max_examples=100, deadline=None)
@given(ranks(), st.integers(1, 100_000), st.integers(0, 100_000), st.integers(1, 8))
def test_more_context_and_more_sequences_take_more(
    made: Rank, context: int, more: int, sequences: int
) -> None:
    assert taken(made, context, sequences) <= taken(made, context + more, sequences)
    assert taken(made, context, sequences) < taken(made, context, sequences + 1)


@settings(max_examples=100, deadline=None)
@given(ranks(), st.integers(1, 256))
def test_a_larger_batch_takes_more(made: Rank, more: int) -> None:
    larger = msgspec.structs.replace(made, max_num_seqs=made.max_num_seqs + more)
    longer = msgspec.structs.replace(made, batched_tokens=made.batched_tokens + more)
    for other in (larger, longer):
        assert memory.activation_bytes(made) <= memory.activation_bytes(other)
        assert memory.graphs_bytes(made) <= memory.graphs_bytes(other)


@settings(max_examples=100, deadline=None)
@given(ranks(), st.integers(1, 100_000))
def test_more_cards_take_less_each(made: Rank, context: int) -> None:
    wider = msgspec.structs.replace(made, tp=2 * made.tp)
    assert taken(wider, context, 1) <= taken(made, context, 1)
    assert memory.weights_bytes(wider) < memory.weights_bytes(made)
    # the table of sines and cosines is whole everywhere
    assert 2 * memory.weights_bytes(wider) >= memory.weights_bytes(made)


@settings(max_examples=100, deadline=None)
@given(ranks(), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_the_stages_of_a_pipeline_are_the_whole(made: Rank, split: list[int]) -> None:
    shape = msgspec.structs.replace(made.shape, layers=sum(split), tied_head=False, sliding_layers=0)
    whole = msgspec.structs.replace(made, shape=shape)
    last = len(split) - 1
    stages = [
        msgspec.structs.replace(whole, pp=len(split), layers=layers, first=at == 0, last=at == last)
        for at, layers in enumerate(split)
    ]
    rope = memory.rope_cache_bytes(shape, whole.width)
    parts = sum(memory.weights_bytes(stage) - rope for stage in stages)
    assert parts == pytest.approx(memory.weights_bytes(whole) - rope, abs=2 * len(split) + 2)
    kv = sum(memory.rank_kv_bytes_per_token(stage) for stage in stages)
    assert kv == memory.rank_kv_bytes_per_token(whole)


@settings(max_examples=100, deadline=None)
@given(ranks(), st.integers(1, 100_000), st.integers(1, 8))
def test_bytes_for_a_context_hold_it(made: Rank, context: int, sequences: int) -> None:
    """And not a block more: the two are inverse, up to a block a sequence."""
    least = memory.kv_bytes_for_context(made, context, sequences=sequences, block=16)
    held = memory.kv_tokens(made, least, context=context, block=16)
    # A float's rounding may cost a block.
    assert sequences * context - 16 <= held < sequences * (context + 16)
    assert (
        memory.kv_tokens(made, least + 16 * memory.rank_kv_bytes_per_token(made), context=context, block=16)
        >= held
    )


def test_groups_are_smaller_where_rows_are_no_multiple_of_128() -> None:
    """576 wide: groups of 64, two bytes of scale for half as many weights."""
    assert memory.group_size(NEMO_SHAPE) == 128
    assert memory.group_size(SMOL_SHAPE) == 64
    assert memory.group_size(msgspec.structs.replace(SMOL_SHAPE, hidden=100)) == 32
    linear = memory.linear_parameters(SMOL_SHAPE)
    tables = 2 * SMOL_SHAPE.embedding_parameters + memory.rope_cache_bytes(SMOL_SHAPE, 2)
    assert memory.checkpoint_bytes(rank(SMOL_SHAPE, "w4a16")) == int(linear * (0.5 + 2 / 64)) + tables
