"""Whether a student's steps are compiled: decided before the first, and kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_world import World, assert_same_student, student_folder

from unic_pipe.pipeline.workspace.documents import last_checkpoint
from unic_pipe.stages.distill import run
from unic_pipe.stages.distill.measure.compiling import compiling_pays
from unic_pipe.stages.distill.measure.cost import StepCost, step_cost
from unic_pipe.stages.distill.model.distiller import Distiller


def said_by(definition: Any, steps: int, plain: float, faster: float | None) -> tuple[bool, str]:
    """What is decided of such steps, which take a minute to compile, and the last that is said; None: no compiler."""

    def cost(_definition: Any, _device: str, compiled: bool = False, whole: bool = False) -> StepCost:
        assert compiled or whole, "steps that may be compiled are not learned from in parts"
        if not compiled:
            return StepCost(plain, 2 * plain, 0, 0)
        if faster is None:
            raise RuntimeError("no C++ compiler\nand much more")
        return StepCost(faster, 60.0, 0, 0)

    said: list[str] = []
    return compiling_pays("main", definition, steps, torch.device("cpu"), said.append, cost=cost), said[-1]


@pytest.mark.parametrize(
    ("steps", "plain", "compiled", "pays", "words"),
    [
        (1_000, 0.5, 0.1, False, "main: 1,000 steps of 500 ms are too few to compile them."),
        (2_000, 0.5, 0.4, True, "main: a step takes 500 ms, compiled 400 ms after 60 s: steps are compiled."),
        (2_000, 0.5, 0.48, False, "main: a step takes 500 ms, compiled 480 ms after 60 s: steps are not compiled."),
        (2_000, 0.5, None, False, "main: steps cannot be compiled here, so they are not (no C++ compiler)."),
    ],
)
def test_compiling_pays_where_it_saves_more_than_it_takes(
    world: World, steps: int, plain: float, compiled: float | None, pays: bool, words: str
) -> None:
    assert said_by(world.definition(), steps, plain, compiled) == (pays, words)


def test_a_short_training_is_not_compiled_and_gives_the_same_bits(world: World, whole: World) -> None:
    world.distill(validation=True, compile="auto")
    assert any("12 steps of" in text and "too few" in text for text in world.reporter.said)
    assert_same_student(world, whole)


def test_a_training_goes_on_as_it_began(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compile_parts = list[Distiller](), Distiller.compile_parts

    def traced(model: Distiller) -> None:
        compiled.append(model)
        compile_parts(model, backend="eager")  # what a C++ compiler would make of the graphs takes minutes

    monkeypatch.setattr(Distiller, "compile_parts", traced)
    monkeypatch.setattr(run, "compiling_pays", lambda *_: True)
    assert not world.distill(stop_after=5, compile="auto")
    assert len(compiled) == 1
    monkeypatch.setattr(run, "compiling_pays", lambda *_: pytest.fail("it was decided before"))
    assert world.distill(compile="auto")
    assert len(compiled) == 2
    entry = last_checkpoint(student_folder(world))
    assert entry is not None
    assert entry.compiled is True


def test_compiled_steps_are_measured_on_whole_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_parts = Distiller.compile_parts
    monkeypatch.setattr(Distiller, "compile_parts", lambda model: compile_parts(model, backend="eager"))
    plain, compiled = (step_cost(world.definition(), "cpu", compiled=wanted) for wanted in (False, True))
    assert (plain.checkpoint_bytes, plain.export_bytes) == (compiled.checkpoint_bytes, compiled.export_bytes)
    assert compiled.first_seconds > compiled.seconds > 0
