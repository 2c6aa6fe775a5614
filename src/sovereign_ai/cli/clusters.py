"""Options of every verb that asks a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

FromCluster = Annotated[
    bool,
    Parameter(name="--cluster", negative="", help="A Kubernetes cluster's, as its node agents tell it."),
]
KubeconfigFile = Annotated[Path | None, Parameter(help="Credentials of the cluster, as kubectl's.")]
ContextName = Annotated[str | None, Parameter(help="Which of the kubeconfig's contexts.")]
