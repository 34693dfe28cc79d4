"""SIGTERM as a request: answered at once where nothing is kept, else when it is looked at."""

import os
import signal

import pytest

from eva_dist.cluster.stop_request import StopRequest, on_sigterm
from eva_dist.errors import PreemptedError


def test_a_signal_makes_the_request_and_the_old_handler_comes_back():
    before, stop = signal.getsignal(signal.SIGTERM), StopRequest()
    with on_sigterm(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.made
        with pytest.raises(PreemptedError, match=r"asked to end \(SIGTERM\): checkpoint after step 3"):
            stop.check("checkpoint after step 3")
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_nothing_is_kept_a_signal_ends_it_at_once():
    stop, reached = StopRequest(), []
    with on_sigterm(stop), pytest.raises(PreemptedError, match="nothing had begun"), stop.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the end")
    assert reached == [] and not stop.at_once


def test_a_request_that_was_made_before_ends_what_is_about_to_begin():
    stop = StopRequest()
    stop.make()
    with pytest.raises(PreemptedError), stop.interruptible():
        pytest.fail("it began")


def test_without_a_request_nothing_happens():
    StopRequest().check()


def test_how_long_ago_the_request_was_made():
    stop = StopRequest()
    assert stop.waited_s == 0.0
    stop.make()
    first = stop.waited_s
    stop.make()
    assert stop.waited_s >= first >= 0.0
