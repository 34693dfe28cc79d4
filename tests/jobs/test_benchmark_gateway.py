"""The gateway's benchmark, in small: real processes, right bytes, figures that can be read."""

import json

from jobs.benchmark_gateway import main


def test_it_prints_a_ratio_and_the_memory_of_both_servers(capsys):
    main(["--clients", "4", "--megabytes", "1", "--rounds", "1"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["right"] and result["ratio"] > 0
    assert {"static", "gateway"} == set(result["peak_bytes"]) and result["peak_bytes"]["gateway"] > 1 << 20
    assert "gateway / static" in printed.err and "WRONG" not in printed.err
