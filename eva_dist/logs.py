"""Log lines of workers as `key=value` pairs: a person reads them, and log stores index them."""

import json
import logging
import sys
import time


class KeyValueFormatter(logging.Formatter):
    """Formats a record as `time=... level=... global_rank=... node=... logger=... msg="..."`, in one line.

    Facts of a record alone (`extra={"facts": {...}}`) follow. Values with spaces or
    quotes are JSON strings; a traceback goes into `error`.
    """

    def __init__(self, **facts: object) -> None:
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        milliseconds = int(record.msecs)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{milliseconds:03d}Z"
        pairs = {"time": stamp, "level": record.levelname, **self._facts, "logger": record.name}
        pairs["msg"] = record.getMessage()
        pairs |= getattr(record, "facts", {})
        if record.exc_info:
            pairs["error"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_format_value(value)}" for key, value in pairs.items())


def log_to_stderr(**facts: object) -> None:
    """Send this process's log to standard error, each line with these facts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter(**facts))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _format_value(value: object) -> str:
    text = str(value)
    return text if text and not any(c.isspace() or c in '"=\\' for c in text) else json.dumps(text, ensure_ascii=False)
