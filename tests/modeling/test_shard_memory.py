"""What a worker reads and holds of a sharded model; memory by the kernel's own count."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM, modeling_utils

from eva_dist.config import Dtype, ModelConfig, Task
from eva_dist.distributed.process_group import shard_mesh
from eva_dist.modeling.load import load_model
from eva_dist.modeling.shard import Sharding
from tests.distributed.gang_of_processes import run
from tests.modeling.tiny_models import held_bytes, llama_config

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts pages by Linux's /proc"),
]

CPU = torch.device("cpu")
_MIB = 2**20
_BLOCKS = 8


@dataclass(frozen=True)
class Pages:
    """MiB: of the shard, more anonymous memory after loading, the most more of it in a forward, of the file read."""

    held: float
    loaded: float
    forward: float
    read: float


def anonymous() -> float:
    """MiB of memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


class CountedSlice:
    """A weight in a file; what is taken of it is counted."""

    def __init__(self, of: Any, taken: list[int]) -> None:
        self._of, self._taken = of, taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __getitem__(self, wanted: Any) -> torch.Tensor:
        found = self._of[wanted]
        self._taken.append(found.nbytes)
        return found


class CountedFile:
    """A safetensors file whose weights are counted as they are read."""

    def __init__(self, of: Any, taken: list[int]) -> None:
        self._of, self._taken = of, taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __exit__(self, *error: object) -> None:
        self._of.__exit__(*error)

    def get_slice(self, name: str) -> CountedSlice:
        return CountedSlice(self._of.get_slice(name), self._taken)


def counted(taken: list[int]) -> Any:
    """While open, what transformers takes of safetensors files is counted."""
    return mock.patch.object(modeling_utils, "safe_open", lambda *a, **k: CountedFile(safe_open(*a, **k), taken))


def look(folder: Path, small: Path, global_rank: int, world_size: int) -> dict[Dtype, Pages]:
    sharding = Sharding(shard_mesh(world_size, CPU, 20.0), CPU)
    ids_BT = torch.arange(1, 9)[None]
    with torch.no_grad():  # what libraries take once, they take here
        load_model(ModelConfig(name_or_path=str(small)), Task.CAUSAL_LM, "model.", CPU, sharding)(input_ids=ids_BT)
    found = {}
    for dtype in (Dtype.float32, Dtype.bfloat16):
        before = anonymous()
        settings = ModelConfig(name_or_path=str(folder), dtype=dtype)
        taken: list[int] = []
        with counted(taken):
            model = load_model(settings, Task.CAUSAL_LM, "model.", CPU, sharding)
        loaded, peaks = anonymous(), []
        for block in model.layers:
            block.register_forward_pre_hook(lambda *_, peaks=peaks: peaks.append(anonymous()))
        with torch.no_grad():
            for _ in range(3):
                model(input_ids=ids_BT, use_cache=False)
        found[dtype] = Pages(held_bytes(model) / _MIB, loaded - before, max(peaks) - loaded, sum(taken) / _MIB)
        del model, block
    return found


@pytest.fixture
def folders(tmp_path):
    torch.manual_seed(0)
    for name, width in (("large", 512), ("small", 32)):
        shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": _BLOCKS}
        LlamaForCausalLM(llama_config(**shape)).save_pretrained(tmp_path / name)
    return tmp_path / "large", tmp_path / "small"


def test_a_worker_holds_its_shard_and_the_block_at_work(folders, tmp_path):
    """A block is 12 MiB in float32, of which gathering takes a second copy; the whole model is 96."""
    members = run(2, partial(look, *folders), tmp_path)
    whole = sum(pages[Dtype.float32].held for pages in members)
    block = whole / _BLOCKS
    print(*members, sep="\n")
    assert 90 < whole < 100
    for pages in members:
        stored, cast = pages[Dtype.float32], pages[Dtype.bfloat16]
        assert stored.held == pytest.approx(whole / 2, rel=0.02) and cast.held == pytest.approx(whole / 4, rel=0.02)
        assert stored.read == stored.held and cast.read == 2 * cast.held  # both are stored in float32
        assert stored.loaded < block / 2  # as it is stored, the shard stays in the mapped file
        assert cast.loaded == pytest.approx(cast.held, abs=block / 2)
        for one, size in ((stored, block), (cast, block / 2)):
            assert one.forward < 2.5 * size + 2
