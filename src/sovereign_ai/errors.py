"""Every error a person can meet, as one tree.

    SovereignError                exit 1    anything that goes wrong; the rest says what
    ├── UsageError                exit 64   the command line asks for something that cannot be
    ├── ConfigError               exit 78   factory.yaml, with file and line
    ├── InventoryError            exit 69   the driver answered with something we cannot use
    ├── PlanError                 exit 69   no placement exists; says what was missing
    ├── StoreError                exit 65   a model cannot be brought in or used
    │   ├── SourceError           exit 69   the source cannot be reached or does not exist
    │   ├── BadModelFile          exit 65   a weights file is truncated or malformed
    │   ├── UnsupportedModel      exit 65   understood, but cannot be converted or served
    │   └── DigestMismatch        exit 65   bytes differ from what the manifest promised
    ├── NoSpace                   exit 74   a disk is full, or would be
    ├── NoPermission              exit 77   the system refused to read or write
    ├── EngineError               exit 70   an engine environment or process failed
    │   ├── EngineUnavailable     exit 69   no engine for this machine
    │   ├── EngineInstallFailed   exit 69   the environment could not be built
    │   └── EngineFailed          exit 70   the engine did not become ready; carries its log line
    ├── DeployError               exit 70
    │   ├── AlreadyRunning        exit 75   another `up` holds the home folder
    │   ├── NotRunning            exit 69   the command needs a running stack
    │   ├── PortTaken             exit 69   somebody else listens there
    │   ├── ClusterUnreachable    exit 69   an API server does not answer
    │   ├── ClusterRefused        exit 70   an API server says no; carries its code and causes
    │   ├── HalfApplied           exit 75   stopped in between; says what was done, and a re-run completes
    │   └── NotReady              exit 70   applied, but pods do not become ready; says why
    ├── Interrupted               exit 130  Ctrl-C
    └── ApiError                  HTTP      answered to a client in OpenAI's error shape
        ├── InvalidRequest        400
        ├── Unauthenticated       401
        ├── Forbidden             403  the key is good, but not for this
        ├── ModelNotFound         404
        ├── MethodNotAllowed      405
        ├── RequestTimeout        408
        ├── RequestTooLarge       413
        ├── RateLimited           429  too many requests; says when to try again
        │   ├── TokensLimited     429  too many tokens a minute
        │   └── QuotaExceeded     429  the budget of the day or month is used up
        ├── UpstreamFailed        502
        └── UpstreamUnavailable   503

Exit codes follow sysexits.h. A foreign error is always kept as the cause.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class SovereignError(Exception):
    """`message` says what was wrong and where; `hint` what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SovereignError):
    exit_code = 64


class ConfigError(SovereignError):
    exit_code = 78


class InventoryError(SovereignError):
    exit_code = 69


class PlanError(SovereignError):
    exit_code = 69


class StoreError(SovereignError):
    exit_code = 65


class SourceError(StoreError):
    exit_code = 69


class BadModelFile(StoreError):
    pass


class UnsupportedModel(StoreError):
    pass


class DigestMismatch(StoreError):
    pass


class NoSpace(SovereignError):
    exit_code = 74


class NoPermission(SovereignError):
    exit_code = 77


class EngineError(SovereignError):
    exit_code = 70


class EngineUnavailable(EngineError):
    exit_code = 69


class EngineInstallFailed(EngineError):
    exit_code = 69


class EngineFailed(EngineError):
    pass


class DeployError(SovereignError):
    exit_code = 70


class AlreadyRunning(DeployError):
    exit_code = 75


class NotRunning(DeployError):
    exit_code = 69


class PortTaken(DeployError):
    exit_code = 69


class ClusterUnreachable(DeployError):
    exit_code = 69


class ClusterRefused(DeployError):
    """`code`: the HTTP status; `reason`: Kubernetes' word for it; `causes`: (reason, field, message) of each
    field that it is about."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        code: int = 0,
        reason: str = "",
        causes: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        super().__init__(message, hint)
        self.code = code
        self.reason = reason
        self.causes = causes


class HalfApplied(DeployError):
    exit_code = 75


class NotReady(DeployError):
    pass


class Interrupted(SovereignError):
    exit_code = 130


class ApiError(SovereignError):
    """An error that a client of the gateway gets.

    `param` is the offending field of the request, `code` a stable word for programs, both as OpenAI's
    error object has them.
    """

    http_status: ClassVar[int] = 500
    error_type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidRequest(ApiError):
    http_status = 400
    error_type = "invalid_request_error"


class Unauthenticated(ApiError):
    http_status = 401
    error_type = "invalid_request_error"


class Forbidden(ApiError):
    http_status = 403
    error_type = "invalid_request_error"


class ModelNotFound(ApiError):
    http_status = 404
    error_type = "invalid_request_error"


class MethodNotAllowed(ApiError):
    http_status = 405
    error_type = "invalid_request_error"


class RequestTimeout(ApiError):
    http_status = 408
    error_type = "invalid_request_error"


class RequestTooLarge(ApiError):
    http_status = 413
    error_type = "invalid_request_error"


class RateLimited(ApiError):
    """`retry_after_s`: seconds until the same request may pass; None: it never will. `reason` is a word for
    metrics."""

    http_status = 429
    error_type = "requests"
    code_word: ClassVar[str] = "rate_limit_exceeded"

    def __init__(self, message: str, *, reason: str, retry_after_s: float | None) -> None:
        super().__init__(message, code=self.code_word)
        self.reason = reason
        self.retry_after_s = retry_after_s


class TokensLimited(RateLimited):
    error_type = "tokens"


class QuotaExceeded(RateLimited):
    error_type = code_word = "insufficient_quota"


class UpstreamFailed(ApiError):
    http_status = 502


class UpstreamUnavailable(ApiError):
    http_status = 503


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn the operating system's refusals inside the block into NoSpace or NoPermission.

    `doing` completes "while …" in the message. Other OSErrors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"no space left while {doing} ({path})",
                "free some space or point the folder at a larger disk; what was complete is kept",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NoPermission(
                f"no permission while {doing} ({error.filename or path})",
                "make the folder writable for this user, or choose another with SOVEREIGN_HOME",
            ) from error
        raise
