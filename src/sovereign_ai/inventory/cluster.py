"""The inventory of a whole cluster, read from its API server. Together with the agent and deploy the only
doors to the Kubernetes client, which is an extra of the package and imported where it is used."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sovereign_ai.errors import ConfigError, InventoryError
from sovereign_ai.inventory.gathered import Gathered, gather
from sovereign_ai.inventory.slices import SERVED_VERSIONS

if TYPE_CHECKING:
    from lightkube import Client

FIELD_MANAGER = "sovereign"
TIMEOUT_S = 10.0
"""Of one connection, and of each wait for the API server's next bytes."""

UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404
REFUSALS = {
    UNAUTHORIZED: "it does not take these credentials: they may have expired",
    FORBIDDEN: "the account's roles do not allow it",
}
NOT_ALLOWED = "ResourceSlices may not be read with this account: nodes without an agent are not seen"


def read_cluster(kubeconfig: Path | None = None, context: str | None = None) -> Gathered:
    """The inventory of every node, from the agents' annotations, else from ResourceSlices.

    Without a kubeconfig: the pod's service account, else KUBECONFIG, else ~/.kube/config. Raises ConfigError
    for what is wrong with these, InventoryError where the API server does not answer or tells nothing.
    """
    with open_client(kubeconfig, context) as client:
        nodes, slices = _nodes(client), _slices(client)
    found = gather(nodes, slices or (), time.time())
    if slices is None:
        return found._replace(warnings=(*found.warnings, NOT_ALLOWED))
    return found


@contextmanager
def open_client(
    kubeconfig: Path | None = None, context: str | None = None, *, manager: str = FIELD_MANAGER
) -> Iterator[Client]:
    """A client of the API server; `manager` is who the fields belong to that are written with it.

    A pod's token is read again from its file when the server no longer takes it. Raises ConfigError.
    """
    _need_extra()
    import httpx2
    from lightkube import Client, KubeConfig

    try:
        config = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        client = Client(config.get(context), timeout=httpx2.Timeout(TIMEOUT_S), field_manager=manager)
    # The file is a person's and its reader is foreign: whatever that raises is about the file.
    except Exception as error:  # includes its assertion that the context names a user
        where = f"{kubeconfig}: " if kubeconfig else "no cluster to ask: "
        hint = "name one: --kubeconfig FILE, --context NAME; or run in a pod with a service account"
        raise ConfigError(f"{where}{_words(error)}", hint) from error
    with client:
        yield client


def _need_extra() -> None:
    try:
        import lightkube  # noqa: F401
    except ImportError as error:
        hint = f"install the extra: {sys.executable} -m pip install 'sovereign-ai[kubernetes]'"
        raise ConfigError("this needs the Kubernetes client, which is not installed", hint) from error


@contextmanager
def cluster_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises inside the block into InventoryError. `doing` completes "while …"."""
    import httpx2
    import msgspec
    from lightkube import ApiError
    from lightkube.core.exceptions import ConfigError as ClientError

    try:
        yield
    except ApiError as error:
        code = error.status.code
        hint = REFUSALS.get(code or 0, "")
        message = error.status.message or error.status.reason
        raise InventoryError(f"the API server refused while {doing}: {message} ({code})", hint) from error
    # ValueError and KeyError: an answer that is no JSON, or has no content type, is no API server's.
    except (
        httpx2.HTTPError,
        httpx2.InvalidURL,
        msgspec.MsgspecError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        hint = "check that its address is right and can be reached from here"
        raise InventoryError(f"the API server did not answer while {doing}: {_words(error)}", hint) from error
    except ClientError as error:
        raise InventoryError(f"no credentials while {doing}: {error}") from error


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _nodes(client: Client) -> list[dict[str, Any]]:
    from lightkube.resources.core_v1 import Node

    with cluster_errors("listing nodes"):
        return [node.to_dict() for node in client.list(Node)]


def _slices(client: Client) -> list[dict[str, Any]] | None:
    """Of the newest version that the server knows; none where it knows none, None where we may not read."""
    from lightkube import ApiError

    for version in SERVED_VERSIONS:
        with cluster_errors("listing ResourceSlices"):
            try:
                return [one.to_dict() for one in client.list(_slice_kind(version))]
            except ApiError as error:
                if error.status.code == FORBIDDEN:
                    return None
                if error.status.code != NOT_FOUND:
                    raise
    return []


def _slice_kind(version: str) -> Any:
    from lightkube.resources import resource_v1, resource_v1beta1, resource_v1beta2

    kinds = {"v1": resource_v1, "v1beta2": resource_v1beta2, "v1beta1": resource_v1beta1}
    return kinds[version].ResourceSlice
