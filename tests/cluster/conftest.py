"""The table of faults, printed when all tests of this folder are done."""

from collections.abc import Iterator

import pytest

from tests.cluster.faults import Table


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    print(f"\n{table}")
