"""config.json as published on the hub, by the name of the entry in shapes.toml; only the keys that count."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _decoder(architecture: str, sizes: tuple[int, int, int, int, int, int, int], **others: Any) -> Config:
    """`sizes`: layers, hidden, heads, KV heads, intermediate, vocabulary, positions."""
    names = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    )
    return {
        "architectures": [architecture],
        "torch_dtype": "bfloat16",
        **dict(zip(names, sizes, strict=True)),
        **others,
    }


PUBLISHED: dict[str, Config] = {
    "llama-3.1-8b": _decoder(
        "LlamaForCausalLM",
        (32, 4096, 32, 8, 14336, 128256, 131072),
        model_type="llama",
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        rope_scaling={"factor": 8.0, "rope_type": "llama3"},
    ),
    "llama-3.2-1b": _decoder(
        "LlamaForCausalLM", (16, 2048, 32, 8, 8192, 128256, 131072), head_dim=64, tie_word_embeddings=True
    ),
    "mistral-nemo": _decoder(
        "MistralForCausalLM",
        (40, 5120, 32, 8, 14336, 131072, 131072),
        head_dim=128,
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    "mistral-7b-v0.1": _decoder(
        "MistralForCausalLM", (32, 4096, 32, 8, 14336, 32000, 32768), sliding_window=4096
    ),
    "mixtral-8x7b": _decoder(
        "MixtralForCausalLM",
        (32, 4096, 32, 8, 14336, 32000, 32768),
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "mistral-small-3.1-24b": {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "spatial_merge_size": 2,
        "text_config": _decoder(
            "MistralForCausalLM",
            (40, 5120, 32, 8, 32768, 131072, 131072),
            head_dim=128,
            sliding_window=None,
        ),
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 1540,
            "intermediate_size": 4096,
            "model_type": "pixtral",
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
    },
    "qwen2.5-7b": _decoder(
        "Qwen2ForCausalLM",
        (28, 3584, 28, 4, 18944, 152064, 32768),
        max_window_layers=28,
        sliding_window=131072,
        tie_word_embeddings=False,
        use_sliding_window=False,
    ),
    "qwen2.5-0.5b": _decoder(
        "Qwen2ForCausalLM",
        (24, 896, 14, 2, 4864, 151936, 32768),
        max_window_layers=21,
        sliding_window=32768,
        tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    "qwen3-4b": _decoder(
        "Qwen3ForCausalLM",
        (36, 2560, 32, 8, 9728, 151936, 40960),
        attention_bias=False,
        head_dim=128,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    "qwen3-30b-a3b": _decoder(
        "Qwen3MoeForCausalLM",
        (48, 2048, 32, 4, 6144, 151936, 40960),
        decoder_sparse_step=1,
        head_dim=128,
        mlp_only_layers=[],
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        tie_word_embeddings=False,
    ),
    "qwen2-vl-7b": _decoder(
        "Qwen2VLForConditionalGeneration",
        (28, 3584, 28, 4, 18944, 152064, 32768),
        sliding_window=32768,
        use_sliding_window=False,
        tie_word_embeddings=False,
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 3584,
            "mlp_ratio": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
    ),
    "qwen2.5-vl-7b": _decoder(
        "Qwen2_5_VLForConditionalGeneration",
        (28, 3584, 28, 4, 18944, 152064, 128000),
        sliding_window=32768,
        use_sliding_window=False,
        tie_word_embeddings=False,
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
    ),
    "gemma-2-9b": _decoder(
        "Gemma2ForCausalLM", (42, 3584, 16, 8, 14336, 256000, 8192), head_dim=256, sliding_window=4096
    ),
    "gemma-3-1b": _decoder(
        "Gemma3ForCausalLM",
        (26, 1152, 4, 1, 6912, 262144, 32768),
        head_dim=256,
        sliding_window=512,
        sliding_window_pattern=6,
    ),
    "gemma-3-4b": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "mm_tokens_per_image": 256,
        "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    },
    "phi-3-mini-4k": _decoder(
        "Phi3ForCausalLM", (32, 3072, 32, 32, 8192, 32064, 4096), attention_bias=False, sliding_window=2047
    ),
    "phi-3.5-mini": _decoder(
        "Phi3ForCausalLM", (32, 3072, 32, 32, 8192, 32064, 131072), sliding_window=262144
    ),
    "phi-4": _decoder("Phi3ForCausalLM", (40, 5120, 40, 10, 17920, 100352, 16384), sliding_window=None),
    "smollm2-135m": _decoder(
        "LlamaForCausalLM", (30, 576, 9, 3, 1536, 49152, 8192), tie_word_embeddings=True
    ),
    "granite-3.3-2b": _decoder(
        "GraniteForCausalLM", (40, 2048, 32, 8, 8192, 49159, 131072), tie_word_embeddings=True
    ),
    "olmo-2-7b": _decoder("Olmo2ForCausalLM", (32, 4096, 32, 32, 11008, 100352, 4096), attention_bias=False),
    "starcoder2-3b": _decoder(
        "Starcoder2ForCausalLM", (30, 3072, 24, 2, 12288, 49152, 16384), sliding_window=4096, use_bias=True
    ),
    "gpt-oss-20b": _decoder(
        "GptOssForCausalLM",
        (24, 2880, 64, 8, 2880, 201088, 131072),
        attention_bias=True,
        head_dim=64,
        layer_types=["sliding_attention", "full_attention"] * 12,
        num_local_experts=32,
        experts_per_token=4,
        num_experts_per_tok=4,
        sliding_window=128,
        tie_word_embeddings=False,
    ),
    "bge-small": {
        "architectures": ["BertModel"],
        "hidden_size": 384,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "torch_dtype": "float32",
        "vocab_size": 30522,
    },
    "bge-m3": {
        "architectures": ["XLMRobertaModel"],
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "max_position_embeddings": 8194,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "torch_dtype": "float32",
        "vocab_size": 250002,
    },
    "nomic-embed-text": {
        "architectures": ["NomicBertModel"],
        "n_embd": 768,
        "n_head": 12,
        "n_inner": 3072,
        "n_layer": 12,
        "n_positions": 8192,
        "torch_dtype": "float32",
        "vocab_size": 30528,
    },
}
