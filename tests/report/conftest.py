import pytest

from eva_dist.store.store import Store
from tests.artifact.conftest import make_pass
from tests.report.sweeps import Sweep, block_plan, settings, turned


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """An empty multirun folder."""
    (tmp_path / "multirun").mkdir()
    return Sweep(tmp_path / "multirun", Store(str(tmp_path / "store")))


@pytest.fixture
def a_pass():
    """Return a function that makes a pass: settings of EVA by keyword, and how it ends."""

    def make(angle=0.0, cosines=(0.5, 0.95, 0.995), turning=(), blocks=2, kinds=None, **eva):
        config = settings(eva).eva
        plan = block_plan(config, blocks, kinds) if kinds else block_plan(config, blocks)
        result = make_pass(plan, config, list(cosines), turning)
        return turned(result, angle) if angle else result

    return make
