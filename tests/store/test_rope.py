from __future__ import annotations

import numpy as np
import pytest

from sovereign_ai.store.rope import llama3_factors, llama3_scaling


@pytest.mark.parametrize(("head_dim", "factor"), [(128, 8.0), (64, 32.0)])
def test_the_parameters_are_told_from_the_factors(head_dim: int, factor: float) -> None:
    scaling = llama3_scaling(llama3_factors(500_000.0, head_dim, factor), 500_000.0, head_dim)
    assert scaling is not None
    assert scaling["factor"] == factor
    assert scaling["rope_type"] == "llama3"


def test_short_waves_stay_and_long_ones_are_stretched() -> None:
    factors = llama3_factors(500_000.0, 128, 8.0)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert np.all(np.diff(factors) >= 0)


def test_other_schemes_are_not_mistaken_for_it() -> None:
    assert llama3_scaling(np.linspace(1, 8, 64, dtype=np.float32), 500_000.0, 128) is None
    assert llama3_scaling(np.ones(3, np.float32), 500_000.0, 128) is None
