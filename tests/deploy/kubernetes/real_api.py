"""A real API server for the tests that a fake one answers too.

KUBEBUILDER_ASSETS names a folder with `etcd` and `kube-apiserver`, as the tests of Kubernetes' own
controllers take it. No controllers run beside them: pods are made ready by a test, and a namespace that is
deleted stays.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 120


@contextmanager
def running(assets: Path, folder: Path) -> Iterator[Path]:
    """The kubeconfig of an account that may do everything."""
    token, etcd, peer, port = secrets.token_hex(16), _free_port(), _free_port(), _free_port()
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    commands = (
        [
            str(assets / "etcd"),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ],
        [
            str(assets / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--cert-dir={folder / 'certificates'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
        ],
    )
    started = [_start(command, folder) for command in commands]
    try:
        _until_ready(port, token, started)
        yield _kubeconfig(folder, port, token)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "NO_PROXY": "127.0.0.1"}
        )


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _until_ready(port: int, token: str, started: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert all(process.poll() is None for process in started), "one of them ended: see its log"
        if _is_ready(port, token):
            return
        time.sleep(0.2)
    raise AssertionError(f"no API server after {START_S} s")


def _is_ready(port: int, token: str) -> bool:
    """Its certificate is its own, made at the start."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    try:
        connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _kubeconfig(folder: Path, port: int, token: str) -> Path:
    named, file = {"name": "real"}, folder / "kubeconfig"
    server = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "real",
        "clusters": [{**named, "cluster": server}],
        "users": [{**named, "user": {"token": token}}],
        "contexts": [{**named, "context": {"cluster": "real", "user": "real"}}],
    }
    file.write_text(json.dumps(config))
    return file
