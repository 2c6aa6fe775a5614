"""Certificates on real sockets. They are made by the openssl program, where there is one."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sovereign_ai.config import TlsSettings
from sovereign_ai.errors import UsageError
from sovereign_ai.gateway.tls import Certificate
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import chat_body, in_loop
from tests.gateway.test_server import events, process

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")


def make(folder: Path, name: str) -> TlsSettings:
    """A certificate for 127.0.0.1 that vouches for itself."""
    made = TlsSettings(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return made


def told() -> tuple[list[tuple[str, dict[str, Any]]], Any]:
    lines: list[tuple[str, dict[str, Any]]] = []
    return lines, lambda event, **fields: lines.append((event, fields))


def test_files_that_change_are_taken_over(tmp_path: Path) -> None:
    settings, other = make(tmp_path, "a"), make(tmp_path, "b")
    lines, tell = told()
    certificate = Certificate(settings, tell)
    certificate.look()
    assert lines == []
    shutil.copy(other.certificate, settings.certificate)
    certificate.look()
    assert lines[0][0] == "certificate_broken"
    assert "not a certificate and its key" in lines[0][1]["error"]
    shutil.copy(other.key, settings.key)
    certificate.look()
    assert lines[1] == ("certificate_loaded", {})
    settings.key.unlink()
    certificate.look()
    assert lines[2][0] == "certificate_broken"
    assert "no such file" in lines[2][1]["error"]


def test_what_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    settings = make(tmp_path, "a")
    settings.key.write_text("nothing")
    with pytest.raises(UsageError, match="not a certificate"):
        Certificate(settings, told()[1])


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    settings = make(tmp_path, "a")
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(settings.key), "-aes256", "-passout", "pass:secret", "-out"]
    subprocess.run([*command, str(locked)], check=True, capture_output=True)
    with pytest.raises(UsageError, match="not a certificate"):
        Certificate(TlsSettings(certificate=settings.certificate, key=locked), told()[1])


@in_loop
async def test_a_renewed_certificate_is_served_while_a_stream_runs(tmp_path: Path) -> None:
    settings, other = make(tmp_path, "a"), make(tmp_path, "b")
    trusted = {name: ssl.create_default_context(cafile=str(tmp_path / f"{name}.pem")) for name in "ab"}
    shutil.copy(settings.certificate, tmp_path / "served.pem")
    shutil.copy(settings.key, tmp_path / "served.key")
    served = TlsSettings(certificate=tmp_path / "served.pem", key=tmp_path / "served.key")
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with fake.listening(), process(tmp_path, fake, tls=served) as (gateway, url, secret):
        url = url.replace("http:", "https:")
        headers = {"Authorization": f"Bearer {secret}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            body = chat_body(stream=True)
            async with session.post(f"{url}/v1/chat/completions", json=body, ssl=trusted["a"]) as response:
                await response.content.readline()
                shutil.copy(other.certificate, served.certificate)
                shutil.copy(other.key, served.key)
                await events(gateway, until="certificate_loaded")
                fake.gate.set()
                assert "[DONE]" in await response.text()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/healthz", ssl=trusted["b"]) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"{url}/healthz", ssl=trusted["a"])
            with pytest.raises(aiohttp.ClientError):
                await session.get(url.replace("https:", "http:") + "/healthz")
