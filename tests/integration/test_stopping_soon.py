"""A request to stop is heard within a batch: during calibration, between teachers, and in the middle of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from builders import encoder_definition, feature_definition

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.extraction.calibrate import calibration_of
from unic_pipe.pipeline.extraction.run import ExtractOptions
from unic_pipe.pipeline.process.stopping import Stop, Stopped
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import CodecDefinition
from unic_pipe.stages.extract import extract
from unic_pipe.stages.indexing import index


class Asking:
    """A reporter that asks for the end after so many images of a task whose title begins so."""

    def __init__(self, title: str, after: int, stop: Stop) -> None:
        self.wanted, self.after, self.stop = title, after, stop
        self.tasks: list[str] = []
        self.counted: dict[str, int] = {}

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Iterator[Asking]:
        self.tasks.append(title)
        if title.startswith(self.wanted) and not self.after:
            self.stop.request()
        yield self

    def advance(self, amount: int = 1) -> None:
        title = self.tasks[-1]
        self.counted[title] = self.counted.get(title, 0) + amount
        if title.startswith(self.wanted) and self.counted[title] >= self.after:
            self.stop.request()

    def note(self, text: str) -> None:
        pass


def run(work: Any, reporter: Any, stop: Stop, *overrides: str) -> dict[str, Any]:
    inventory = work.inventory(*overrides)
    index(inventory, ["train", "val"], reporter, Stop())
    return dict(extract(inventory, (), ExtractOptions(device="cpu"), reporter, stop))


@pytest.mark.slow
def test_calibration_ends_between_batches(raw: Any) -> None:
    stop = Stop()
    reporter = Asking("calibrate", 8, stop)
    passes = run(raw, reporter, stop, "cache.codec=klt")
    calibrations = [title for title in reporter.tasks if title.startswith("calibrate")]
    assert len(calibrations) == 1, "the other teacher is not begun"
    assert reporter.counted[calibrations[0]] < 90
    assert [found.done for found in passes.values()] == [0]
    assert not [title for title in reporter.tasks if title.startswith("extract")]
    later = run(raw, Asking("nothing", 1, Stop()), Stop(), "cache.codec=klt")
    assert all(found.complete for found in later.values())


def test_fitting_ends_between_codecs_and_wants_two_images() -> None:
    stop, codec = Stop(), CodecDefinition(name="auto", snr_db=15.0)
    definition = feature_definition(encoder_definition(8, 8, (2, 2)), 256, codec)
    need, x_ND = FeatureNeed("train", "a", definition, {"cls": 1}), np.random.default_rng(0).normal(size=(40, 8))
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 2:
            stop.request()
        stop.check()

    with pytest.raises(Stopped):
        calibration_of(need, "cls", np.arange(40), x_ND.astype(np.float32), 40, check=check)
    assert len(asked) >= 2
    with pytest.raises(StageError, match=r"with two images at least, and train has 1\."):
        calibration_of(need, "cls", np.arange(1), x_ND[:1].astype(np.float32), 1)


@pytest.mark.slow
def test_calibration_in_several_calls_gives_the_same_bytes(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for cores in (1, 64):
        monkeypatch.setattr("unic_pipe.pipeline.extraction.calibrate.usable_cores", lambda cores=cores: cores)
        run(raw, Asking("nothing", 1, Stop()), Stop(), "cache.codec=klt")
        files = sorted((raw.folder / "features").glob("train-*/calibration/*"))
        digests.append({f"{p.parent.parent.name}/{p.name}": p.read_bytes() for p in files if p.is_file()})
        for folder in (raw.folder / "features").iterdir():
            folder.rename(raw.folder / f"{folder.name}.{cores}")
    assert digests[0]
    assert digests[0] == digests[1]


def test_blocks_in_flight_end_at_their_next_batch(raw: Any) -> None:
    stop = Stop()
    reporter = Asking("extract train", 0, stop)
    found = run(raw, reporter, stop)["train"]
    assert found.done == 0, "nothing was finished for the sake of finishing it"
    assert not found.complete
    later = run(raw, Asking("nothing", 1, Stop()), Stop())
    assert all(p.complete for p in later.values())


def test_status_shows_students_that_the_configuration_does_not_name(trained: Any) -> None:
    """Made by `--student hot --set …`: half-trained with the command that goes on, and then finished."""
    import shlex

    from unic_pipe.pipeline.workspace.other_students import other_students

    change = "students.tiny.optimizer.lr=0.01"

    def shown() -> Any:
        [found] = other_students(trained.inventory())
        return found

    assert list(other_students(trained.inventory())) == []
    inventory = trained.inventory(change)
    stop = Stop()
    from unic_pipe.stages.distill.parallel.world import Context
    from unic_pipe.stages.distill.stage import distill_students, named_students

    chosen = named_students(inventory, ["hot"])
    distill_students(chosen, ["hot"], Context(Asking("", 2, stop), stop), device="cpu", live_check=False)
    half = shown()
    assert (half.name, half.state, half.total) == ("students/hot", "partial", 33)
    assert 0 < half.done < 33
    assert shlex.split(half.next) == ["unic-pipe", "distill", "--student", "hot", "--set", change]
    distill_students(chosen, ["hot"], Context(Asking("nothing", 1, Stop()), Stop()), device="cpu", live_check=False)
    assert (shown().state, shown().next, shown().reason) == ("fresh", None, "not in the configuration")
