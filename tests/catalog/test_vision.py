from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.catalog.vision import read_vision
from sovereign_ai.errors import UnsupportedModel
from sovereign_ai.spec import Vision

CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "patch_size": 14,
}


def test_a_model_of_text_has_none() -> None:
    assert read_vision({}, "Llama", "c") is None


def test_an_encoder_of_one_size() -> None:
    """LLaVA 1.5: 336 pixels a side in patches of 14, every patch a token."""
    assert read_vision({"vision_config": CLIP}, "Llava", "c") == Vision(
        layers=24, hidden=1024, intermediate=4096, patches=576, outputs=576
    )


def test_an_encoder_of_any_size_is_planned_for_its_largest_image() -> None:
    found = read_vision({"vision_config": {"hidden_size": 3584}}, "Qwen2VL", "c")
    assert found == Vision(layers=32, hidden=1280, intermediate=5120, patches=65536, outputs=16384)


def test_patches_merge_as_either_part_of_the_config_says() -> None:
    for config in (
        {"vision_config": CLIP, "spatial_merge_size": 2},
        {"vision_config": CLIP | {"spatial_merge_size": 2}},
    ):
        found = read_vision(config, "Mistral3", "c")
        assert found is not None
        assert found.outputs == 144


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"vision_config": "clip"}, "c: `vision_config` is 'clip', not an object"),
        (
            {"vision_config": CLIP | {"patch_size": 0}},
            "`vision_config.patch_size` is 0, not a plausible number",
        ),
        ({"vision_config": CLIP | {"image_size": [336, 336]}}, "`vision_config.image_size` is"),
        ({"vision_config": {"patch_size": 14}}, "`vision_config.hidden_size` is missing"),
        ({"vision_config": CLIP, "mm_tokens_per_image": "many"}, "mm_tokens_per_image` is 'many'"),
    ],
)
def test_values_that_cannot_be(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModel, match=problem):
        read_vision(config, "Llava", "c")
