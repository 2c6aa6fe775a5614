"""Names of models: from what a file or a repository is called to what clients call the model. Pure."""

from __future__ import annotations

import re

from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.config import MODEL_NAME

_QUANT = re.compile(
    r"[-._](?:UD-)?(I?Q[1-8](?:_[0-9A-Z]+)*|BF16|F16|F32|FP16|MXFP4)$",
    re.IGNORECASE,
)
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")


def plain_name(text: str) -> tuple[str, str]:
    """`models/Mistral-Nemo-Instruct-2407-Q4_K_M.gguf` → (`Mistral-Nemo-Instruct-2407`, `Q4_K_M`)."""
    last = text.rstrip("/").replace("\\", "/").rpartition("/")[2]
    last = re.sub(r"\.gguf$", "", last, flags=re.IGNORECASE)
    last = _SHARD.sub("", last)
    quant = _QUANT.search(last)
    bare = last[: quant.start()] if quant else last
    return re.sub(r"[-_.]gguf$", "", bare, flags=re.IGNORECASE), quant[1].upper() if quant else ""


def model_name(text: str) -> str:
    """A name that factory.yaml takes, as near to `text` as can be; `model` where nothing of it is left."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:63]
    slug = slug.strip("._-")
    return slug if MODEL_NAME.fullmatch(slug) else "model"


def original(text: str) -> str | None:
    """The hub name of the very model that `text` is a packing of; None where the catalog cannot tell.

    `find_shape` alone would take a base model for the one that was tuned from it: they have the same shape.
    """
    bare = plain_name(text)[0]
    known = find_shape(bare)
    if known is None or _bare(known.hub) != _bare(bare):
        return None
    return known.hub


def _bare(name: str) -> str:
    return name.lower().rpartition("/")[2].removeprefix("meta-")
