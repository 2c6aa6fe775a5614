"""References computed without our code, in the engine environment: run by its Python, answers in JSON.

PYTHON references.py greedy MODEL_FOLDER < prompts.json
PYTHON references.py embed MODEL_FOLDER < texts.json
PYTHON references.py tensors GGUF_FILE SAFETENSORS_FILE
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def greedy(folder: str) -> list[dict[str, Any]]:
    """vLLM asked directly: its own chat template, its own tokenizer."""
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm import LLM, SamplingParams

    llm = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=2048)
    answers = []
    for messages, max_tokens in json.load(sys.stdin):
        # One at a time, as the gateway is asked: a batch may add up in another order.
        output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)[0]
        part = output.outputs[0]
        answers.append(
            {
                "text": part.text,
                "tokens": list(part.token_ids),
                "prompt_tokens": len(output.prompt_token_ids),
                "finish_reason": part.finish_reason,
            }
        )
    return answers


def embed(folder: str) -> list[list[float]]:
    """One text at a time through transformers, mean over the tokens, length 1: as the model's card says."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    vectors = []
    for text in json.load(sys.stdin):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(dim=0)
        vectors.append((mean / mean.norm()).tolist())
    return vectors


def tensors(gguf_file: str, safetensors_file: str) -> dict[str, Any]:
    """Every tensor of transformers' own dequantised load of the GGUF beside the converted file's."""
    from pathlib import Path

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GgufConfig

    path = Path(gguf_file)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    expected = model.state_dict()
    converted = load_file(safetensors_file)
    different = [
        name
        for name, tensor in converted.items()
        if name not in expected or not torch.equal(tensor, expected[name])
    ]
    return {
        "compared": len(converted),
        "different": different,
        "missing": sorted(set(expected) - set(converted) - {"lm_head.weight"}),
        "tied": bool(torch.equal(expected["lm_head.weight"], converted["model.embed_tokens.weight"])),
    }


if __name__ == "__main__":
    verb: Any = {"greedy": greedy, "embed": embed, "tensors": tensors}[sys.argv[1]]
    answer = verb(*sys.argv[2:])
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
