from __future__ import annotations

import pytest

from sovereign_ai.deploy.kubernetes.versions import compare_versions
from sovereign_ai.errors import ConfigError


@pytest.mark.parametrize("made_for", ["1.34", None])
def test_the_same(made_for: str | None) -> None:
    assert compare_versions("v1.34.2+k3s1", made_for) == ""


def test_a_newer_cluster_is_noted() -> None:
    note = compare_versions("v1.36.0", "1.31")
    assert "the cluster is Kubernetes v1.36.0, kubernetes.version says 1.31" in note
    assert 'kubernetes.version: "1.36"' in note


def test_an_older_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"v1\.31\.4, kubernetes.version says 1\.34") as caught:
        compare_versions("v1.31.4", "1.34")
    assert 'kubernetes.version: "1.31"' in caught.value.hint


@pytest.mark.parametrize("made_for", ["1.31", None])
def test_one_that_is_too_old_for_any_stack(made_for: str | None) -> None:
    with pytest.raises(ConfigError, match=r"v1\.30\.9, and stacks need 1\.31 or later"):
        compare_versions("v1.30.9", made_for)


def test_what_is_no_version() -> None:
    with pytest.raises(ConfigError, match="`latest` is not a version"):
        compare_versions("latest", None)
