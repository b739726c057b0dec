"""Log lines: all of them in one shape, one line each in JSON, with the id of the request that they belong to.

No line holds headers, bodies or query strings, so none holds a key. That can only be said of our own lines: libraries
log whole addresses at info (httpx, of every webhook) and more at debug, so only their warnings and errors are shown.
"""

from __future__ import annotations

import json
import logging
import re
import time
from contextvars import ContextVar

from elit_serve.server.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that this task serves
QUERY = re.compile(r"(https?://[^\s?'\"]*\?)[^\s'\"]*")
FIELDS = ("method", "path", "status", "duration_ms", "client", "key")  # what a record may carry beside its message


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, then what there is of request_id, `FIELDS` and error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _without_queries(record.getMessage()),
            "request_id": REQUEST_ID.get(),
        }
        line |= {name: getattr(record, name, None) for name in FIELDS}
        line["error"] = _without_queries(self.formatException(record.exc_info)) if record.exc_info else None
        return json.dumps({name: value for name, value in line.items() if value is not None})


class TextFormatter(logging.Formatter):
    """`LEVEL logger: message`, and the request's id; what a caller made up cannot start a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in _without_queries(record.getMessage()))
        request_id = REQUEST_ID.get()
        line = f"{record.levelname} {record.name}: {message}" + (f" [{request_id}]" if request_id else "")
        return f"{line}\n{_without_queries(self.formatException(record.exc_info))}" if record.exc_info else line


def configure(settings: Settings) -> None:
    """Sends every log line of the process to stderr, in the shape that is asked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(settings))
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("elit_serve").setLevel(level)
    logging.captureWarnings(True)


def announcement(settings: Settings, text: str) -> str:
    """The line that says that the server is there, in the shape of the log if that is JSON."""
    if settings.log_format == "text":
        return text
    record = logging.LogRecord("elit_serve", logging.INFO, __file__, 0, text, None, None)
    return _formatter(settings).format(record)


def _formatter(settings: Settings) -> logging.Formatter:
    return JsonFormatter() if settings.log_format == "json" else TextFormatter()


def _without_queries(text: str) -> str:
    """Errors quote the addresses that they are about, and what stands behind ? in these may be a secret."""
    return QUERY.sub(r"\1…", text)
