"""Models built by hand from their published configs."""

from __future__ import annotations

from sovereign_ai.spec import Model, Shape, Task

SMOL_SHAPE = Shape(
    architecture="LlamaForCausalLM",
    parameters=134_515_008,
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate=1536,
    vocabulary=49152,
    context_max=8192,
)
MINILM_SHAPE = Shape(
    architecture="BertModel",
    parameters=22_713_216,
    layers=6,
    hidden=384,
    heads=12,
    kv_heads=12,
    head_dim=32,
    intermediate=1536,
    vocabulary=30522,
    context_max=256,
)
NEMO_SHAPE = Shape(
    architecture="MistralForCausalLM",
    parameters=12_247_782_400,
    layers=40,
    hidden=5120,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14336,
    vocabulary=131072,
    context_max=131072,
)
LLAMA_3B_SHAPE = Shape(
    architecture="LlamaForCausalLM",
    parameters=3_212_749_824,
    layers=28,
    hidden=3072,
    heads=24,
    kv_heads=8,
    head_dim=128,
    intermediate=8192,
    vocabulary=128256,
    context_max=131072,
)


def model(name: str, shape: Shape, task: Task = "chat") -> Model:
    return Model(
        name=name,
        version="1",
        task=task,
        source=f"pypi:{name}",
        weights_bytes=shape.parameters * 2,
        dtype="bfloat16",
        shape=shape,
    )


SMOL = model("smollm2-135m", SMOL_SHAPE)
MINILM = model("minilm-l6-v2", MINILM_SHAPE, "embed")
NEMO = model("mistral-nemo", NEMO_SHAPE)
LLAMA_3B = model("llama-3b", LLAMA_3B_SHAPE)
