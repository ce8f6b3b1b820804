"""`run`: whatever is not fresh, in the order in which it is made."""

from collections.abc import Callable, Mapping, Sequence

from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import EVALUATION
from unic_pipe.pipeline.workspace.status import make_plan
from unic_pipe.schemas.status import Artefact, Stage

ORDER: tuple[Stage, ...] = ("index", "extract", "distill", "evaluate")
ROUND: tuple[Stage, ...] = ("extract", "distill")
"""Repeated while a student that was just finished lets others begin: as their teacher, or as what they start from."""
Step = Callable[[Inventory, Sequence[Artefact]], None]
"""Brings the unfinished artefacts of one stage up to date."""


def run(look: Callable[[], Inventory], steps: Mapping[Stage, Step], reporter: Reporter, stop: Stop) -> None:
    """Run the stages that have something unfinished.

    `look` reads the working folder anew: each stage plans with what the one before has made.
    """
    for stage in ORDER:
        _run_stage(stage, look, steps, reporter)
        left = _left(look) if stage == ROUND[-1] and not stop.requested else []
        while left and not stop.requested:
            if any(EVALUATION in artefact.waits_for for artefact in left):  # a student learns from a teacher's probe
                reporter.say(
                    f"evaluate first: {', '.join(a.name for a in left if EVALUATION in a.waits_for)} learns from it"
                )
                steps["evaluate"](look(), ())
            for again in ROUND:
                if not stop.requested:
                    _run_stage(again, look, steps, reporter)
            before, left = left, _left(look)
            if left == before:
                break
        if stop.requested:
            return


def _run_stage(stage: Stage, look: Callable[[], Inventory], steps: Mapping[Stage, Step], reporter: Reporter) -> None:
    """Run one stage for those of its artefacts that are not fresh and wait for no other."""
    inventory = look()
    artefacts = [a for a in make_plan(inventory).artefacts if a.stage == stage]
    unfinished = [a for a in artefacts if a.state != "fresh" and not a.waits_for]
    waiting = [a for a in artefacts if a.state != "fresh" and a.waits_for]
    title = f"[{ORDER.index(stage) + 1}/{len(ORDER)}] {stage}"
    if unfinished:
        more = f" and {len(unfinished) - 4} more" if len(unfinished) > 4 else ""
        reporter.say(f"{title}: {', '.join(map(_because, unfinished[:4]))}{more}")
        steps[stage](inventory, unfinished)
    elif artefacts and not waiting:
        count = "1 artefact is" if len(artefacts) == 1 else f"all {len(artefacts)} artefacts are"
        reporter.say(f"{title}: nothing to do, {count} fresh")


def _left(look: Callable[[], Inventory]) -> list[Artefact]:
    """What a round has left undone."""
    return [a for a in make_plan(look()).artefacts if a.stage in ROUND and a.state != "fresh"]


def _because(artefact: Artefact) -> str:
    progress = f" {artefact.done} of {artefact.total}" if artefact.state == "partial" else ""
    why = f" ({artefact.reason})" if artefact.state == "stale" else ""
    return f"{artefact.name} {artefact.state}{progress}{why}"
