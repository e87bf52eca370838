"""Signals are noted, not obeyed; Ctrl-C twice is."""

import os
import signal

import pytest

from lingbot.termination import NotedSignals


@pytest.fixture
def noted():
    noted = NotedSignals(signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in noted.numbers]
    noted.listen()
    yield noted
    noted.put_back()
    assert [signal.getsignal(number) for number in noted.numbers] == before


def test_a_signal_is_noted_and_nothing_else_happens(noted):
    assert noted.told == 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
        assert noted.told == number


def test_ctrl_c_once_more_interrupts(noted):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_listening_again_forgets_what_was_told(noted):
    os.kill(os.getpid(), signal.SIGTERM)
    noted.put_back()
    noted.listen()
    assert noted.told == 0
