"""What variants are worth, told without our code: run by the Python of an environment, answers in JSON.

PYTHON quantized.py distances FOLDER VARIANT… < texts.json     in the environment `quantize`
PYTHON quantized.py greedy VARIANT < [beginnings, tokens]       in the engine's
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def distances(base: str, *variants: str) -> list[dict[str, float]]:
    """By transformers' own load of each folder: Kullback-Leibler divergence of the variant's next token from
    the base's, mean over all places of all texts, in nats; and the share of places with the same first."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = json.load(sys.stdin)

    def predicted(folder: str) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        return torch.cat(logits).log_softmax(-1)

    expected = predicted(base)
    found = []
    for folder in variants:
        said = predicted(folder)
        divergence = (expected.exp() * (expected - said)).sum(-1).mean()
        same = (expected.argmax(-1) == said.argmax(-1)).float().mean()
        found.append({"divergence": divergence.item(), "same": same.item()})
    return found


def greedy(folder: str) -> list[str]:
    """vLLM as the stack runs it on CPUs, in one process: it starts in a third of the time."""
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    from vllm import LLM, SamplingParams

    llm = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=512)
    beginnings, tokens = json.load(sys.stdin)
    settings = SamplingParams(temperature=0, max_tokens=tokens)
    return [output.outputs[0].text for output in llm.generate(beginnings, settings, use_tqdm=False)]


if __name__ == "__main__":
    verb: Any = {"distances": distances, "greedy": greedy}[sys.argv[1]]
    answer = verb(*sys.argv[2:])
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
