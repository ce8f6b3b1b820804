"""GPU use: a column and a word in the progress line where it can be known, and nothing anywhere else."""

from __future__ import annotations

import pytest
import torch

from unic_pipe.pipeline.extraction.bottleneck import Waits
from unic_pipe.pipeline.extraction.executors import Threads
from unic_pipe.pipeline.process.gpu_use import gpu_use
from unic_pipe.stages.distill.clock import Stretch


def asked(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """A machine with a GPU whose driver gives this answer."""

    def utilization(device: object = None) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)


def test_a_driver_that_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, 87)
    assert (gpu_use(), gpu_use("cuda:1"), gpu_use("cpu"), gpu_use("elsewhere")) == (0.87, 0.87, None, None)
    assert Waits("cuda", Threads()).note().endswith(" · GPU 87%")


@pytest.mark.parametrize("error", [ModuleNotFoundError("no nvidia-ml-py"), RuntimeError("no driver"), OSError("MIG")])
def test_a_driver_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked(monkeypatch, error)
    assert gpu_use() is None
    assert "GPU" not in Waits("cuda", Threads()).note()


def test_a_column_only_where_it_is_known() -> None:
    assert Stretch(0.1, 50.0, 2.0).known() == {"data_wait": 0.1, "images_per_s": 50.0, "queue": 2.0}
    assert Stretch(0.1, 50.0, 2.0).note() == "waits for data 10%"
    assert Stretch(0.1, 50.0, 2.0, 0.87).known()["gpu_use"] == 0.87
    assert Stretch(0.1, 50.0, 2.0, 0.87).note() == "waits for data 10% · GPU 87%"
