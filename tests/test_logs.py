"""One line a record, that a person and a log store can read."""

import logging
import re
import sys

from eva_dist.logs import KeyValueFormatter


def line(message, *arguments, error=None):
    record = logging.LogRecord("eva_dist.x", logging.WARNING, "f.py", 1, message, arguments, error)
    return KeyValueFormatter(global_rank=3, node="10.0.0.7").format(record)


def test_a_record_is_one_line_of_pairs():
    found = line("lost %d of %d", 1, 4)
    assert re.match(
        r"time=20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=WARNING global_rank=3 node=10\.0\.0\.7 ", found
    )
    assert found.endswith('logger=eva_dist.x msg="lost 1 of 4"')


def test_values_are_quoted_where_they_must_be():
    assert line("done").endswith("msg=done")
    assert line('say "x=1"\nand more').endswith(r'msg="say \"x=1\"\nand more"')


def test_a_traceback_stays_in_the_line():
    try:
        raise ValueError("bad")
    except ValueError:
        found = line("failed", error=sys.exc_info())
    assert "\n" not in found and 'error="Traceback' in found and "ValueError: bad" in found
