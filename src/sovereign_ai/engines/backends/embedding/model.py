"""The `embedding` backend: sentence embeddings as the model's own files describe them.

A sentence-transformers folder says in modules.json which steps follow the encoder: pooling (1_Pooling) and,
for many models, normalisation. Both are done here; what is not understood fails the load by name instead of
giving other vectors than the model's card promises.

Input `text` STRING [n, 1]; outputs `embedding` FP32 [n, hidden] and `num_tokens` INT32 [n, 1].
A text of more than `max_tokens` tokens is refused, never cut in silence.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

POOLINGS = ("pooling_mode_mean_tokens", "pooling_mode_cls_token")


class TritonPythonModel:
    """What Triton's Python backend calls: auto_complete_config, initialize, execute."""

    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "text", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "embedding", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "num_tokens", "data_type": "TYPE_INT32", "dims": [1]})
        return config

    def initialize(self, args):
        import torch
        from transformers import AutoModel, AutoTokenizer

        file = Path(args["model_repository"]) / args["model_version"] / "model.json"
        settings = json.loads(file.read_text())
        folder = Path(settings["model"])
        self._torch = torch
        self._max_tokens = settings["max_tokens"]
        self._pooling, self._normalize = _steps(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def execute(self, requests):
        texts = [_texts(request) for request in requests]
        encoded = [self._tokenizer(part)["input_ids"] for part in texts]
        fitting = [tokens for part in encoded if not self._too_long(part) for tokens in part]
        vectors = iter(self._embed(fitting))
        return [self._respond(part, vectors) for part in encoded]

    def _too_long(self, encoded):
        return any(len(tokens) > self._max_tokens for tokens in encoded)

    def _respond(self, encoded, vectors):
        if self._too_long(encoded):
            longest = max(len(tokens) for tokens in encoded)
            text = f"text of {longest} tokens is longer than the model's {self._max_tokens}"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG)
            )
        rows = np.stack([next(vectors) for _ in encoded])
        counts = np.asarray([[len(tokens)] for tokens in encoded], dtype=np.int32)
        tensors = [pb_utils.Tensor("embedding", rows), pb_utils.Tensor("num_tokens", counts)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _embed(self, encoded):
        """Token lists → float32 array [n, hidden]."""
        if not encoded:
            return np.empty((0, 0), dtype=np.float32)
        batch = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt")
        with self._torch.inference_mode():
            states = self._model(**batch).last_hidden_state
            vectors = self._pool(states, batch["attention_mask"])
            if self._normalize:
                vectors = self._torch.nn.functional.normalize(vectors, p=2, dim=1)
        return vectors.numpy().astype(np.float32, copy=False)

    def _pool(self, states, mask):
        if self._pooling == "pooling_mode_cls_token":
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _texts(request):
    tensor = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
    return [item.decode("utf-8") for item in tensor]


def _steps(folder):
    """(pooling mode, normalise?) from modules.json and the pooling step's own config."""
    modules_file = folder / "modules.json"
    if not modules_file.is_file():
        return "pooling_mode_mean_tokens", False
    pooling, normalize = "pooling_mode_mean_tokens", False
    for module in json.loads(modules_file.read_text()):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(json.loads((folder / module["path"] / "config.json").read_text()))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ValueError(f"modules.json asks for `{kind}`, which the embedding backend does not have")
    return pooling, normalize


def _pooling(config):
    chosen = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ValueError(f"pooling {chosen} is not supported; supported: {', '.join(POOLINGS)}")
    return chosen[0]
