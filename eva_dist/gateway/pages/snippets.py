"""Code that loads an artifact from this server, to copy; what a manifest names can only ever be a string in it."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

from eva_dist.artifact.auto_classes import auto_class
from eva_dist.gateway.pages.facts import ADAPTER_FILES, STATE_DICT_FILE
from eva_dist.gateway.pages.reading import Reading, shown
from eva_dist.report.markup import element, said

if TYPE_CHECKING:
    from aiohttp import web

    from eva_dist.gateway.pages.kept import Listed

_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


def endpoint(request: web.Request) -> str:
    """Return this server's address as the reader's browser knows it."""
    forwarded = request.headers.get("X-Forwarded-Proto", "")
    scheme = forwarded if forwarded in ("http", "https") else request.scheme
    host = request.host if _HOST.fullmatch(request.host) else "localhost"
    return f"{scheme}://{host}"


def snippets(one: Listed, server: str) -> str:
    """Return the blocks of code, each with its heading."""
    repo_id, revision = one.revision.repo_id, one.revision.revision
    source = f"{server}/{repo_id}@{revision}"
    files = one.snapshot.files
    blocks = []
    if all(file in files for file in ADAPTER_FILES):
        blocks.append(_block("Ready adapter, with PEFT", _peft(one, server)))
    if STATE_DICT_FILE in files:
        code = f"import eva_dist\n\neva_state_dict = eva_dist.load_eva_state_dict(\n    {_literal(source)}\n)"
        blocks.append(_block("As an initialisation, with eva_dist", code))
    hf = f"HF_ENDPOINT={shlex.quote(server)} hf download {shlex.quote(repo_id)} --revision {shlex.quote(revision)}"
    blocks.append(_block("Files, with the Hub's command", hf))
    blocks.append(_block("Files, with eva-dist", f"eva-dist pull {shlex.quote(source)}"))
    return element("div", *blocks, class_="snippets")


def _block(name: str, code: str) -> str:
    written = element("code", said(code), class_="load", data_name=name)
    return element("div", element("h3", said(name)), element("pre", written, tabindex="0"), class_="snippet")


def _peft(one: Listed, server: str) -> str:
    reading = Reading(one.snapshot.manifest)
    cls = auto_class(reading.found("model.task_type"))
    options = {key: reading.text(*paths) for key, paths in (
        ("revision", ("model.revision", "config.model.revision")), ("gguf_file", ("config.model.gguf_file",)),
    )}  # fmt: skip
    given = [_literal(one.facts.base_model or "the base model")]
    given += [f"{key}={_literal(value)}" for key, value in options.items() if value is not None]
    given += _overrides(reading)
    return f"""\
import os

os.environ["HF_ENDPOINT"] = {_literal(server)}  # before the imports

from peft import PeftModel
from transformers import {cls}

base = {cls}.from_pretrained({", ".join(given)})
model = PeftModel.from_pretrained(
    base, {_literal(one.revision.repo_id)}, revision={_literal(one.revision.revision)}, is_trainable=True
)"""


def _overrides(reading: Reading) -> list[str]:
    """Return what the run changed of the model's config, where it is plain; whatever runs code is never repeated."""
    found = reading.mapping("config.model.config_overrides")
    return [
        f"{key}={_literal(shown(value))}" if isinstance(value, str) else f"{key}={value!r}"
        for key, value in found.items()
        if key.isidentifier() and key.isascii() and key != "trust_remote_code" and isinstance(value, (str, int, float))
    ]


def _literal(text: str) -> str:
    """Return a text as a string of Python: what JSON escapes, Python reads as the same."""
    return json.dumps(text, ensure_ascii=False)
