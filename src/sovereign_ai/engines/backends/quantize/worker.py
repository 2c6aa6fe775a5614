"""Quantizes one model. Runs in the environment `quantize`, without this package.

    PYTHON worker.py < job.json

The job: `model` (folder), `out` (folder to write), `scheme` (fp8, int8, w4a16), `samples` (calibration: a
list of {"text": …} or {"messages": […]}; null without), `sample_tokens` (what is kept of each), `parent` (the
process that it must not outlive).

Standard output has one JSON object a line: {"step": …, "part": n} while it works (with calibration data the
model is gone through in parts: its layers, then the head), at last {"made": {…}}, or {"refused": why} for a
model that the scheme does not fit. Everything else goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from importlib import metadata

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent has died."""

GROUP_SIZES = (128, 64, 32)
"""Numbers that share a scale in 4-bit weights: 128 is what engines have the fastest kernels for, and the
smallest of the matrices of a model must be whole groups."""

DAMPENING = 0.1
"""Of GPTQ, as a share of the mean of the diagonal: ten times the library's default. On little calibration
data the default fits the noise: SmolLM2-135M came out worse than rounded to nearest, with this better."""

IGNORED = ["lm_head"]
"""Layers that stay as they are, beside embeddings and norms, which are never quantized."""

TOOLS = ("llmcompressor", "compressed-tensors", "transformers", "torch")


class Refused(Exception):
    """The model and the scheme do not go together; the text says why."""


def group_size(widths):
    """The largest size of a group that every one of the `widths` is a multiple of."""
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    odd = next(width for width in sorted(widths) if width % GROUP_SIZES[-1])
    raise Refused(f"4-bit weights come in groups of {GROUP_SIZES[-1]} or more, and a layer is {odd} wide")


def linears(model):
    """Name → layer, of all that is quantized."""
    import torch

    found = {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    return {name: one for name, one in found.items() if name not in IGNORED}


def recipe(scheme, size, calibrated, report):
    """What the library is to do: channel-wise 8 bit with activations quantized as they come, or 4 bit in
    groups of `size`; with calibration data by GPTQ (https://arxiv.org/abs/2210.17323), else to nearest."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    class Reporting(GPTQModifier):
        def on_sequential_epoch_end(self, state, event, modules, **kwargs):
            super().on_sequential_epoch_end(state, event, modules, **kwargs)
            report()

    if scheme == "w4a16":
        weights = QuantizationArgs(
            num_bits=4, type="int", strategy="group", group_size=size, symmetric=True, dynamic=False
        )
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        return Reporting(config_groups=groups, ignore=IGNORED, dampening_frac=DAMPENING)
    preset = {"fp8": "FP8_DYNAMIC", "int8": "W8A8"}[scheme]
    if calibrated:
        return Reporting(targets="Linear", scheme=preset, ignore=IGNORED, dampening_frac=DAMPENING)
    return QuantizationModifier(targets="Linear", scheme=preset, ignore=IGNORED)


def tokens(tokenizer, sample, length):
    """One sample as the model reads it, on one row."""
    import torch

    if "messages" in sample:
        text = tokenizer.apply_chat_template(sample["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    else:
        ids = tokenizer(sample["text"], truncation=True, max_length=length)["input_ids"]
    row = torch.tensor([ids])
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def calibration(tokenizer, job):
    """The arguments that hand the samples to the library; none where there are none."""
    import torch

    if not job["samples"]:
        return {}
    rows = [tokens(tokenizer, sample, job["sample_tokens"]) for sample in job["samples"]]
    rows = [row for row in rows if row["input_ids"].numel()]
    if not rows:
        raise Refused("the calibration data has no tokens of this model")
    loader = torch.utils.data.DataLoader(rows, batch_size=None)
    return {"dataset": loader, "num_calibration_samples": len(rows), "pipeline": "sequential"}


def quantize(model, tokenizer, job, say):
    """Returns the group size, where there is one, and the number of samples that were used."""
    from llmcompressor import oneshot

    layers = linears(model)
    if not layers:
        raise Refused("the model has no layers that can be quantized")
    size = group_size({layer.in_features for layer in layers.values()}) if job["scheme"] == "w4a16" else None
    data = calibration(tokenizer, job)
    done = 0

    def report():
        nonlocal done
        done += 1
        say({"step": "quantizing", "part": done})

    say({"step": "quantizing"})
    oneshot(model=model, tokenizer=tokenizer, recipe=recipe(job["scheme"], size, bool(data), report), **data)
    return size, data.get("num_calibration_samples", 0)


def write(model, job):
    """Pack the weights, and save them; what is not quantized becomes bfloat16 where it was float32.

    Scales stay float32 beside 8-bit weights, where there is one a row; in groups they are 16 bit, as the
    format is counted everywhere.
    """
    import torch
    from compressed_tensors import ModelCompressor

    ModelCompressor.from_pretrained_model(model).compress_model(model)
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise Refused(f"{name} holds numbers that are not finite: the model cannot be quantized so")
        kept = name.endswith("weight_scale") and job["scheme"] != "w4a16"
        if tensor.dtype == torch.float32 and not kept:
            tensor.data = tensor.data.to(torch.bfloat16)
    if model.config.dtype == torch.float32:
        model.config.dtype = torch.bfloat16
    model.save_pretrained(job["out"], save_compressed=True)


def work(job, say):
    say({"step": "loading"})
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    size, samples = quantize(model.eval(), tokenizer, job, say)
    say({"step": "writing"})
    write(model, job)
    dtype = str(model.config.dtype).removeprefix("torch.")
    made = {"dtype": dtype, "group_size": size, "samples": samples, "ignored": IGNORED}
    say({"made": {**made, "tools": {name: metadata.version(name) for name in TOOLS}}})


def main():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    job = json.load(sys.stdin)
    if os.getppid() != job["parent"]:
        return 1  # it died before that signal was asked for
    # Libraries print as they like: the line of communication is kept apart from standard output.
    line = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message):
        line.write(json.dumps(message) + "\n")
        line.flush()

    try:
        work(job, say)
    except Refused as refused:
        say({"refused": str(refused)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
