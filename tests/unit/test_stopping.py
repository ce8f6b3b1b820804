"""Signals: the first asks for an end, the second is one. Each is sent to a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from unic_pipe.pipeline.process.stopping import Stop

PROGRAM = """
import sys, time
from unic_pipe.pipeline.process.stopping import Stop
with Stop() as stop:
    print("ready", flush=True)
    while not stop.requested: time.sleep(0.01)
    print("asked", flush=True)
    if "stubborn" in sys.argv: time.sleep(60)
print("done", flush=True)
sys.exit(stop.exit_code)
"""


def start(*arguments):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_the_first_signal_asks_and_the_program_ends_by_itself(number, code):
    process = start()
    process.send_signal(number)
    out, said = process.communicate(timeout=30)
    assert out == "asked\ndone\n"
    assert process.returncode == code
    assert said.strip() == "Stopping after what is in flight (again: stop at once) ..."


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(second):
    process = start("stubborn")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(second)
    out, _ = process.communicate(timeout=10)
    assert out == ""
    assert process.returncode == 128 + second


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_the_first_reason_decides_the_exit_code():
    stop = Stop()
    assert (stop.requested, stop.exit_code) == (False, 0)
    stop.request(signal.SIGINT)
    stop.request(signal.SIGTERM)
    assert (stop.requested, stop.exit_code) == (True, 130)


def test_a_thread_can_use_it_without_signals():
    seen = []

    def work():
        with Stop() as stop:
            stop.request()
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
