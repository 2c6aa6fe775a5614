"""Whether a cluster is of the version that its manifests are made for. Pure."""

from __future__ import annotations

import re

from sovereign_ai.config import CLUSTER_VERSIONS
from sovereign_ai.errors import ConfigError


def compare_versions(server: str, made_for: str | None) -> str:
    """`server`: as it tells it, `v1.34.2+k3s1`; `made_for`: kubernetes.version, None where it is not known.

    Gives a note where the cluster is newer, "" where all is well. Raises ConfigError where it is older.
    """
    is_, least = _minor(server), _minor(CLUSTER_VERSIONS[0])
    if is_ < least:
        problem = f"the cluster is Kubernetes {server}, and stacks need {CLUSTER_VERSIONS[0]} or later"
        raise ConfigError(problem)
    if made_for is None or is_ == _minor(made_for):
        return ""
    said = f"the cluster is Kubernetes {server}, kubernetes.version says {made_for}"
    hint = f'set kubernetes.version: "{is_[0]}.{is_[1]}" in factory.yaml'
    if is_ < _minor(made_for):
        raise ConfigError(f"{said}: it may lack what the manifests use", hint)
    return f"{said}: {hint} to use what it has"


def _minor(version: str) -> tuple[int, int]:
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found is None:
        raise ConfigError(f"`{version[:80]}` is not a version of Kubernetes")
    return int(found[1]), int(found[2])
