"""Code that loads an artifact from this server, to copy; what a manifest names can only ever be a string in it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eva_dist.artifact.auto_classes import auto_class
from eva_dist.artifact.reading import Reading, shown
from eva_dist.artifact.summary import ADAPTER_FILES, STATE_DICT_FILE
from eva_dist.gateway.access import TOKEN_NAME

if TYPE_CHECKING:
    from aiohttp import web

    from eva_dist.gateway.catalogue.cache import ListedArtifact

TOKEN_VARIABLE = "EVA_DIST_TOKEN"
"""What our own commands and `load_eva_state_dict` give a gateway; the Hub's clients give HF_TOKEN."""
_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


@dataclass(frozen=True)
class Server:
    """This server as the reader knows it: its address, and whether it asks for tokens."""

    url: str
    needs_token: bool = False

    def token_line(self, variable: str) -> str:
        """Return the line of Python that sets the token, if one is needed."""
        return f'os.environ["{variable}"] = "..."  # your token, or set {variable}\n' if self.needs_token else ""


def server_of(request: web.Request) -> Server:
    """Return this server's address as the reader's browser has it; who was asked for a token is told to give one."""
    forwarded = request.headers.get("X-Forwarded-Proto", "")
    scheme = forwarded if forwarded in ("http", "https") else request.scheme
    host = request.host if _HOST.fullmatch(request.host) else "localhost"
    return Server(f"{scheme}://{host}", TOKEN_NAME in request)


def snippets(one: ListedArtifact, server: Server) -> list[tuple[str, str]]:
    """Return pieces of code, each with what it is for."""
    repo_id, revision = one.revision.repo_id, one.revision.revision
    source = f"{server.url}/{repo_id}@{revision}"
    files = one.snapshot.files
    pieces = []
    if all(file in files for file in ADAPTER_FILES):
        pieces.append(("Ready adapter, with PEFT", _peft_code(one, server)))
    if STATE_DICT_FILE in files:
        token = f"import os\n\n{server.token_line(TOKEN_VARIABLE)}\n" if server.needs_token else ""
        load = f"eva_state_dict = eva_dist.load_eva_state_dict(\n    {_python_literal(source)}\n)"
        pieces.append(("As an initialisation, with eva_dist", f"{token}import eva_dist\n\n{load}"))
    hub_token, our_token = ("HF_TOKEN=... ", f"{TOKEN_VARIABLE}=... ") if server.needs_token else ("", "")
    at_server = f"{hub_token}HF_ENDPOINT={shlex.quote(server.url)}"
    hf = f"{at_server} hf download {shlex.quote(repo_id)} --revision {shlex.quote(revision)}"
    pieces.append(("Files, with the Hub's command", hf))
    pieces.append(("Files, with eva-dist", f"{our_token}eva-dist pull {shlex.quote(source)}"))
    return pieces


def _peft_code(one: ListedArtifact, server: Server) -> str:
    reading = Reading(one.snapshot.manifest)
    cls = auto_class(reading.found("model.task_type"), reading.found("model.auto_class"))
    options = {key: reading.text(*paths) for key, paths in (
        ("revision", ("model.revision", "config.model.revision")), ("gguf_file", ("config.model.gguf_file",)),
    )}  # fmt: skip
    given = [_python_literal(one.facts.base_model or "the base model")]
    given += [f"{key}={_python_literal(value)}" for key, value in options.items() if value is not None]
    given += _config_overrides(reading)
    return f"""\
import os

os.environ["HF_ENDPOINT"] = {_python_literal(server.url)}  # before the imports
{server.token_line("HF_TOKEN")}
from peft import PeftModel
from transformers import {cls}

base = {cls}.from_pretrained({", ".join(given)})
model = PeftModel.from_pretrained(
    base, {_python_literal(one.revision.repo_id)}, revision={_python_literal(one.revision.revision)}, is_trainable=True
)"""


def _config_overrides(reading: Reading) -> list[str]:
    """Return what the run changed of the model's config, where it is plain; whatever runs code is never repeated."""
    found = reading.mapping("config.model.config_overrides")
    return [
        f"{key}={_python_literal(shown(value))}" if isinstance(value, str) else f"{key}={value!r}"
        for key, value in found.items()
        if key.isidentifier() and key.isascii() and key != "trust_remote_code" and isinstance(value, (str, int, float))
    ]


def _python_literal(text: str) -> str:
    """Return a text as a string of Python: what JSON escapes, Python reads as the same."""
    return json.dumps(text, ensure_ascii=False)
