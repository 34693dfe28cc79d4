"""Load an artifact, wherever it lies: what PEFT's `initialize_lora_eva_weights` takes."""

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eva_dist.artifact.layers import choose_layers
from eva_dist.artifact.safetensors_header import LENGTH_BYTES, Span, check_layers, header_length, merged, read_header
from eva_dist.errors import IntegrityError
from eva_dist.store.artifact_reader import REMEDY, ArtifactReader, NoRangesError
from eva_dist.store.artifact_ref import RefKind, parse_artifact_ref
from eva_dist.store.open_artifact import fetch, open_artifact
from eva_dist.store.transfer_progress import Progress, counting

_TENSOR_FILE = "eva_state_dict.safetensors"
_REQUESTS_AT_ONCE = 8


def load_eva_state_dict(
    source: str | os.PathLike[str],
    *,
    prefix: str = "base_model.model.",
    layers: str | Sequence[str] | None = None,
    store_url: str | None = None,
    progress: Progress = None,
) -> dict[str, Tensor]:
    """Return layer name to float32 `[rank, in_features]`, ready for PEFT's `initialize_lora_eva_weights`.

    The dict is fresh at each call, for PEFT's loader pops from the one it is given. Rank-0
    layers are there as `[0, in_features]`: PEFT then removes the adapter from them.

    What comes from elsewhere is kept (`EVA_DIST_CACHE`), and every byte is verified: the file by the sha256 in the
    manifest, a part of it by the sha256 of each tensor there. With `layers`, only these tensors travel, unless the
    server sends no parts of files, or the artifact is of a version that has no hashes of tensors.

    Args:
        source: a folder, `file:///folder`, `team/name@revision` in a store, `s3://bucket/team/name@revision` (also gs,
            az, abfs, memory), `hf://org/name@revision`, or `http(s)://host/org/name@revision`.
        prefix: put before each name of the base model; the default gives the names in a
            `PeftModel`, `prefix=""` those in the base model.
        layers: the layers to load: names or their last parts (`["q_proj"]`), or a regular expression that matches a
            whole name, as in PEFT's `target_modules`; None: all.
        store_url: the store of `team/name`.
        progress: told of bytes as they arrive; None: a bar where standard error is a terminal, False: none.

    Raises:
        ConfigError: `source` is none of these.
        ArtifactNotFoundError: there is no artifact at `source`.
        IntegrityError: the tensors are missing or differ from the manifest.
        LayerError: the artifact has no such layers.
        StoreError: the place cannot be reached, or refuses.
    """
    opened = open_artifact(source, store_url)
    try:
        return {prefix + name: tensor for name, tensor in _tensors(opened, layers, prefix, progress).items()}
    except IntegrityError as error:
        if opened.where in str(error):
            raise
        raise IntegrityError(f"{opened.where}/{_TENSOR_FILE}: {error}; {REMEDY}") from error


def source_folder(source: str | os.PathLike[str], store_url: str | None = None) -> Path:
    """Return the folder that a source names, which need not be there; what lies elsewhere is fetched first, verified.

    Raises:
        ConfigError: it is no source (`store/artifact_ref.py`).
        ArtifactNotFoundError, IntegrityError, StoreError: elsewhere there is none, or it cannot be had.
    """
    parsed = parse_artifact_ref(source, store_url)
    return Path(parsed.url) if parsed.kind is RefKind.folder else fetch(parsed)


def _tensors(
    opened: ArtifactReader, layers: str | Sequence[str] | None, prefix: str, progress: Progress
) -> dict[str, Tensor]:
    """Return the tensors by the names of the base model."""
    if layers is not None and not opened.is_here(_TENSOR_FILE) and (hashes := _hashes(opened.snapshot.manifest)):
        names = choose_layers(layers, hashes, prefix)
        try:
            if len(names) < len(hashes):
                return _travelled(opened, {name: hashes[name] for name in names}, progress)
        except NoRangesError:
            pass  # then the whole file comes
    content = opened.read(_TENSOR_FILE, progress)
    spans = _spans(opened, lambda start, end: content[start:end])
    names = list(spans) if layers is None else choose_layers(layers, spans, prefix)
    return {name: _tensor(content[spans[name].start : spans[name].end], spans[name].shape) for name in names}


def _hashes(manifest: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the sha256 of each tensor; None where the manifest has none, or does not say the tensors' shapes."""
    hashes = manifest.get("tensors")
    if hashes is None or not isinstance(manifest.get("layers"), dict):
        return None
    if not isinstance(hashes, dict) or not all(
        isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in hashes.values()
    ):
        raise IntegrityError("`tensors` in its manifest must be names with 64 lower-case hex digits each")
    if other := sorted(hashes.keys() ^ manifest["layers"].keys()):
        raise IntegrityError(f"{other[0]} is in only one of `tensors` and `layers` in its manifest")
    for name, layer in manifest["layers"].items():
        sizes = (layer.get("rank"), layer.get("in_features")) if isinstance(layer, dict) else ()
        if not sizes or any(type(size) is not int or size < 0 for size in sizes):
            raise IntegrityError(f"{name} in its manifest must have a rank and in_features, whole numbers from 0")
    return hashes


def _travelled(opened: ArtifactReader, hashes: Mapping[str, str], progress: Progress) -> dict[str, Tensor]:
    """Return tensors without the rest of their file: from the cache, else by their ranges, verified one by one."""
    cache, layers = opened.cache, opened.snapshot.manifest["layers"]
    assert cache is not None, "what has no cache is here"
    contents = {name: cache.tensor(sha256) for name, sha256 in hashes.items()}
    if missing := [name for name, content in contents.items() if content is None]:
        spans = _spans(opened, lambda start, end: opened.read_range(_TENSOR_FILE, start, end))
        ranges = merged(spans[name] for name in missing)
        with counting(opened.where, sum(end - start for start, end in ranges), progress) as tell:
            parts = _parts(opened, ranges, tell)
        for name in missing:
            span = spans[name]
            start = next((start for start, end in ranges if start <= span.start and span.end <= end), span.start)
            content = parts.get(start, b"")[span.start - start : span.end - start]
            if (actual := hashlib.sha256(content).hexdigest()) != hashes[name]:
                raise IntegrityError(f"{name} has sha256 {actual}, but its manifest says {hashes[name]}")
            cache.keep_tensor(actual, content)
            contents[name] = content
    shapes = {name: (layers[name]["rank"], layers[name]["in_features"]) for name in hashes}
    return {name: _tensor(content, shapes[name]) for name, content in contents.items() if content is not None}


def _parts(opened: ArtifactReader, ranges: Sequence[tuple[int, int]], tell: Callable[[int], None]) -> dict[int, bytes]:
    """Return the bytes of ranges by where they start."""

    def read(piece: tuple[int, int]) -> bytes:
        content = opened.read_range(_TENSOR_FILE, *piece)
        tell(len(content))
        return content

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return dict(zip((start for start, _ in ranges), pool.map(read, ranges), strict=True))


def _spans(opened: ArtifactReader, read: Callable[[int, int], bytes]) -> dict[str, Span]:
    """Return where each tensor lies in the file, proven by the manifest as far as it goes."""
    size = opened.entry(_TENSOR_FILE).size
    start = LENGTH_BYTES + header_length(read(0, min(LENGTH_BYTES, size)), size)
    spans = read_header(read(LENGTH_BYTES, start), size)
    if isinstance(layers := opened.snapshot.manifest.get("layers"), dict):
        check_layers(spans, layers)
    return spans


def _tensor(content: bytes, shape: Sequence[int]) -> Tensor:
    """Return a float32 tensor with memory of its own."""
    if len(content) != 4 * math.prod(shape):
        raise IntegrityError(f"a tensor of {len(content)} bytes cannot be float32 {list(shape)}")
    if not content:
        return torch.empty(*shape)
    values = np.frombuffer(content, dtype="<f4").astype(np.float32)
    return torch.from_numpy(values).reshape(*shape)
