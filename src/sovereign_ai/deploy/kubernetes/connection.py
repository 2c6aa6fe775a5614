"""The connection to an API server. The one door to the Kubernetes client, which is an extra and imported here
alone: it reads the kubeconfig, and brings certificates and tokens along.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sovereign_ai.errors import ClusterRefused, ClusterUnreachable, ConfigError, DeployError

if TYPE_CHECKING:
    import httpx2
    from lightkube.config.kubeconfig import SingleConfig

CONNECT_S, ANSWER_S = 10.0, 40.0
"""An answer may wait for an admission webhook, 30 seconds at most (`timeoutSeconds` of
ValidatingWebhookConfiguration)."""

UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE = 401, 403, 404, 409, 410
AWAY = (502, 503, 504)
"""Said by an API server that starts or stops, or by a balancer before it."""

HINTS = {
    UNAUTHORIZED: "the credentials may have expired: get new ones, or choose others with --context",
    FORBIDDEN: "`sovereign doctor --cluster` tells all rights that are needed",
}
CREDENTIALS_HINT = "name others: --kubeconfig FILE, --context NAME; or run in a pod with a service account"
AWAY_HINT = "check that its address is right and can be reached from here"


@contextmanager
def connected(kubeconfig: Path | None, context: str | None) -> Iterator[tuple[httpx2.Client, str]]:
    """A connection, and the server's address. Without a kubeconfig: the pod's service account, else
    KUBECONFIG, else ~/.kube/config. Raises ConfigError."""
    _need_extra()
    import httpx2
    from lightkube.config.client_adapter import Client, ConnectionParams

    waits = httpx2.Timeout(CONNECT_S, read=ANSWER_S)
    try:
        config = _config(kubeconfig, context)
        connection = Client(config, ConnectionParams(timeout=waits))
    # The file is a person's and its reader is foreign: whatever that raises is about the file.
    except Exception as error:
        where = f"{kubeconfig}: " if kubeconfig else "no cluster to ask: "
        raise ConfigError(f"{where}{words(error)}", CREDENTIALS_HINT) from error
    with connection:
        yield connection, str(config.cluster.server)


def _need_extra() -> None:
    try:
        import lightkube  # noqa: F401
    except ImportError as error:
        hint = f"install the extra: {sys.executable} -m pip install 'sovereign-ai[kubernetes]'"
        raise ConfigError("this needs the Kubernetes client, which is not installed", hint) from error


def _config(kubeconfig: Path | None, context: str | None) -> SingleConfig:
    from lightkube import KubeConfig
    from lightkube.core.exceptions import ConfigError as ClientError

    found = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
    chosen = found.get(context)
    if chosen is None:
        raise ClientError("it has no current context")
    return chosen


@contextmanager
def answers(server: str) -> Iterator[None]:
    """Turn what the connection raises inside the block into our own errors."""
    import httpx2
    from lightkube.core.exceptions import ConfigError as ClientError

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
        raise ClusterUnreachable(f"{server} does not answer: {words(error)}", AWAY_HINT) from error
    except ClientError as error:  # a program that gives tokens out, which the kubeconfig names
        raise ConfigError(f"no credentials for {server}: {error}", CREDENTIALS_HINT) from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise not_kubernetes(server, error) from error


def not_kubernetes(server: str, why: object) -> ClusterUnreachable:
    return ClusterUnreachable(f"{server} answers, but not as an API server of Kubernetes: {why}", AWAY_HINT)


def failure(answer: httpx2.Response, server: str) -> DeployError:
    """What an answer of 400 or more says."""
    if answer.status_code in AWAY:
        return ClusterUnreachable(f"{server} does not answer: it says {answer.status_code}", AWAY_HINT)
    try:
        status = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.MsgspecError:  # of a path that the server does not have, in plain text
        status = {"message": answer.text.strip()[:200]}
    return refusal(status, answer.status_code)


def refusal(status: dict[str, Any], code: int = 0) -> ClusterRefused:
    """From Kubernetes' object `Status`."""
    code = code or int(status.get("code") or 0)
    message = str(status.get("message") or status.get("reason") or f"code {code}")
    causes = tuple(
        (str(one.get("reason", "")), str(one.get("field", "")), str(one.get("message", "")))
        for one in (status.get("details") or {}).get("causes") or ()
    )
    reason = str(status.get("reason") or "")
    return ClusterRefused(message, HINTS.get(code, ""), code=code, reason=reason, causes=causes)


def words(error: BaseException) -> str:
    return str(error) or type(error).__name__
