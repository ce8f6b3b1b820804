"""Students that teach other students, or that others start from: who has to be finished before whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unic_pipe.schemas.starts import TEACHER, Start

STUDENT = "student:"
"""An encoder `student:NAME` is the finished student of that name."""


def named_student(encoder: str | None) -> str | None:
    """The student that an encoder's choice names, if it names one."""
    return encoder.removeprefix(STUDENT) if encoder is not None and encoder.startswith(STUDENT) else None


def needed_students(
    teaching: Mapping[str, str | None], students: Mapping[str, tuple[Sequence[str] | None, Start | None]]
) -> dict[str, dict[str, str]]:
    """For each student, the students that it needs and why (`teacher proxy`, `init`).

    `teaching` holds the teachers' encoders, `students` each one's teachers (None: all of them) and its start. A bare name
    counts, too, whether a student has it or not.
    """
    needs: dict[str, dict[str, str]] = {}
    for name, (teachers, init) in students.items():
        chosen = teaching if teachers is None else teachers
        needs[name] = {other: f"teacher {t}" for t in chosen if (other := named_student(teaching[t])) is not None}
        begins = init.encoder if init is not None else ""
        if begins.startswith(TEACHER):
            begins = teaching.get(begins.removeprefix(TEACHER)) or ""
        other = named_student(begins) or (begins if ":" not in begins else "")
        if other:
            needs[name][other] = "init"
    return needs


def circles(needs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Students that need themselves, and how, in words.

    `needs` is that of `needed_students`.
    """
    found = {}
    for student in needs:
        path = _path_back(student, student, needs, frozenset())
        if path:
            found[student] = ", ".join(path)
    return found


def _path_back(start: str, here: str, needs: Mapping[str, Mapping[str, str]], seen: frozenset[str]) -> list[str]:
    for needed, why in needs.get(here, {}).items():
        step = f"{here} needs {needed} ({why})"
        if needed == start:
            return [step]
        if needed not in seen:
            rest = _path_back(start, needed, needs, seen | {needed})
            if rest:
                return [step, *rest]
    return []
