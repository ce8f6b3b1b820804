"""`run`: whatever is not fresh, in the order in which it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.inventory import Inventory
from pipeline.planning import make_plan
from pipeline.progress import Reporter
from pipeline.stopping import Stop
from schemas.status import Artefact, Stage

ORDER: tuple[Stage, ...] = ("index", "extract", "distill", "evaluate")
Step = Callable[[Inventory, Sequence[Artefact]], None]
"""Brings the unfinished artefacts of one stage up to date."""


def run(look: Callable[[], Inventory], steps: Mapping[Stage, Step], reporter: Reporter, stop: Stop) -> bool:
    """Run the stages that have something unfinished; True when everything is fresh at the end.

    `look` reads the working folder anew: each stage plans with what the one before has made.
    """
    for number, stage in enumerate(ORDER, 1):
        inventory = look()
        artefacts = [a for a in make_plan(inventory).artefacts if a.stage == stage]
        unfinished = [a for a in artefacts if a.state != "fresh"]
        if not artefacts:
            continue
        if not unfinished:
            reporter.say(f"[{number}/{len(ORDER)}] {stage}: nothing to do, {_count(artefacts)} fresh")
            continue
        reporter.say(f"[{number}/{len(ORDER)}] {stage}: {_because(unfinished)}")
        steps[stage](inventory, unfinished)
        if stop.requested:
            return False
    return all(a.state == "fresh" for a in make_plan(look()).artefacts)


def _count(artefacts: Sequence[Artefact]) -> str:
    return "1 artefact is" if len(artefacts) == 1 else f"all {len(artefacts)} artefacts are"


def _because(artefacts: Sequence[Artefact]) -> str:
    parts = []
    for artefact in artefacts:
        progress = f" {artefact.done} of {artefact.total}" if artefact.state == "partial" else ""
        why = f" ({artefact.reason})" if artefact.state == "stale" else ""
        parts.append(f"{artefact.name} {artefact.state}{progress}{why}")
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
