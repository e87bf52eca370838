"""Signals are noted, not obeyed; Ctrl-C twice is."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from lingbot.termination import NotedSignals, end_with_parent, process_exists


@pytest.fixture
def noted():
    noted = NotedSignals(signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in noted.numbers}
    noted.listen()
    yield noted
    for number, handler in before.items():
        signal.signal(number, handler)


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
    noted.listen()
    assert noted.told == 0


@pytest.mark.processes
def test_a_rank_ends_soon_after_the_one_that_started_it():
    child = (
        "import os, time; from lingbot.termination import end_with_parent;"
        "end_with_parent(os.getppid(), grace_s=0.1);"
        "print('ready', flush=True); time.sleep(90)"
    )
    parent = (
        "import subprocess, sys; subprocess.Popen("
        f"[sys.executable, '-c', {child!r}], stdout=subprocess.PIPE).stdout.readline()"
    )
    # the child holds its end of the pipe for errors until it ends
    subprocess.run([sys.executable, "-c", parent], stderr=subprocess.PIPE, timeout=60, check=True)


def test_a_process_that_did_not_start_this_one_is_not_followed():
    threads = threading.active_count()
    end_with_parent(os.getpid(), grace_s=0)
    assert threading.active_count() == threads


@pytest.mark.processes
def test_a_process_that_has_ended_does_not_exist_even_while_nobody_has_waited_for_it():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_exists(process.pid)
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # leaves it as it is
    assert not process_exists(process.pid)
    process.wait()
    assert not process_exists(process.pid)
