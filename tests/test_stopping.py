"""stopping.py: which signals ask for a stop, and which a run ignores. test_run.py has them end real runs."""

import os
import signal

import pytest

from multitask.stopping import Stop, Stopped, terminable


@pytest.fixture
def ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_hangup_that_was_ignored_stays_ignored(ignored):
    """As under nohup."""
    with terminable(), Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_hangup_asks_for_a_stop_and_the_next_ones_are_ignored(capfd):
    before = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second signal stops at once
    assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == before
    assert "stopping after this step" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_does_not_train_stops_at_once(number):
    with pytest.raises(Stopped) as caught, terminable():
        os.kill(os.getpid(), number)
    assert (caught.value.number, caught.value.run) == (number, None)
