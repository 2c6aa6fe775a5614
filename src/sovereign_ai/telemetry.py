"""Logging, set up once by the command that runs. Library code only asks `logging.getLogger(__name__)`."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TextIO

import msgspec

ROOT = "sovereign_ai"
"""The logger above all of ours. Other packages' loggers are left as they are."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, then the `extra` fields of the call."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure_logging(level: str, stream: TextIO, json_lines: bool) -> None:
    """Send our log to `stream`, from `level` ("debug", "info", "warning", "error") upwards.

    Calling it again replaces what the call before set up. Raises ValueError for an unknown level.
    """
    output = logging.StreamHandler(stream)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    output.setFormatter(JsonLines() if json_lines else plain)
    logger = logging.getLogger(ROOT)
    logger.setLevel(level.upper())
    logger.handlers[:] = [output]
    logger.propagate = False
