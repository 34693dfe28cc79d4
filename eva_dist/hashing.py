"""What names things: sha256 of settings and of files."""

import errno
import hashlib
import json
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of what decides the numbers, given as JSON-like values; key order does not matter."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the sha256 (hex) of a file, however large; `OSError` for a pipe, which would never end."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it; `OSError` for what is none: opening a pipe would wait for whoever writes it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")
