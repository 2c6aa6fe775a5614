"""The gateway's certificate, and its successors: files that change are taken over while it runs."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from sovereign_ai.config import TlsSettings
from sovereign_ai.errors import UsageError, disk_errors

Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """`context` serves connections; a handshake takes the certificate that is there then. `tell` is told what
    happened: an event's name and its fields. Raises UsageError for files that cannot be used."""

    def __init__(self, settings: TlsSettings, tell: Callable[..., None]) -> None:
        self._settings, self._tell = settings, tell
        self._stamp = self._look()
        self.context = self._load(_context())

    def for_uvicorn(self, *_: Any) -> ssl.SSLContext:
        return self.context

    def look(self) -> None:
        """Take the files over if they are others now. Broken ones are told and change nothing."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            # first where it does no harm: a certificate without its key would spoil the one in use
            self._load(_context())
            self._load(self.context)
        except UsageError as error:
            self._tell("certificate_broken", error=error.message)
        else:
            self._tell("certificate_loaded")

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        files = self._settings.certificate, self._settings.key
        try:
            with disk_errors("reading the certificate", files[1]):
                context.load_cert_chain(*files, password=_no_password)
        except ssl.SSLError as error:
            raise UsageError(
                f"{files[0]} and {files[1]} are not a certificate and its key: {error}"
            ) from error
        except FileNotFoundError as error:
            raise UsageError(f"{files[0]} or {files[1]}: no such file") from error
        return context

    def _look(self) -> Stamp | None:
        try:
            found = [path.stat() for path in (self._settings.certificate, self._settings.key)]
        except OSError:
            return None
        return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _context() -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with Python's own choice of ciphers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    """Without it OpenSSL would ask on the terminal, and wait."""
    return ""
