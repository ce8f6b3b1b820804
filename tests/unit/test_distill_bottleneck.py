"""What is said when the device waits for data, and when nothing is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from unic_pipe.stages.distill.clock import LOOK_S, Bottleneck, Clock, Times, Work


def said(spent: dict[Work, float], waited: float, on_gpu: bool = True) -> list[str]:
    """After a first stretch, and then two of `LOOK_S` in which the loader's threads spent so many seconds."""
    times, lines = Times(), list[str]()
    bottleneck = Bottleneck(times, 4, on_gpu, lines.append)
    times.add("reading", 1000.0)
    bottleneck.look(1.0, LOOK_S)
    for _ in range(2):
        for work, seconds in spent.items():
            times.add(work, seconds)
        bottleneck.look(waited, LOOK_S)
    return lines


@pytest.mark.parametrize(
    ("spent", "words"),
    [
        ({"decoding": 60.0, "reading": 10.0, "gathering": 5.0}, "decoding images"),
        ({"reading": 60.0, "decompressing": 10.0}, "reading from the disk"),
        ({"decompressing": 60.0, "rendering": 40.0}, "decompressing features"),
        # One thread puts batches together: it is the busiest, although the four of the pool did more.
        ({"decoding": 60.0, "gathering": 29.0}, "putting batches together"),
    ],
)
def test_names_what_limits_once(spent: dict[Work, float], words: str) -> None:
    (line,) = said(spent, 0.2)
    assert "20%" in line
    assert words in line


def test_says_nothing_without_need() -> None:
    assert said({"decoding": 60.0}, 0.04) == []
    # On a CPU the step and the loader want the same cores: waiting for the disk alone is worth a word.
    assert said({"decoding": 60.0}, 0.5, on_gpu=False) == []
    assert len(said({"reading": 60.0}, 0.5, on_gpu=False)) == 1


def test_clock_counts_waiting_and_images() -> None:
    times = Times()
    clock = Clock(1.0, False, Bottleneck(times, 1, False, print))

    def slow() -> Iterator[Any]:
        for _ in range(3):
            time.sleep(0.02)
            yield object()

    for _ in clock.waited(slow()):
        times.took(2)
        clock.stepped(8)
    first, second = clock.stretch(), clock.stretch()
    assert 0 < first.data_wait <= 1
    assert first.images_per_s > 0
    assert first.queue == 2
    assert second == (0.0, 0.0, 0.0, None)
