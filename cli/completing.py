"""Names that a shell completes: those of the working folder that is current, and of what is known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from unic_pipe.schemas.errors import UnicPipeError


def _of_configuration(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in names() if name.startswith(incomplete)]
        except (UnicPipeError, OSError):  # a shell that completes says nothing
            return []

    return complete


def _students() -> list[str]:
    from unic_pipe.pipeline.workspace.configuration import load_workspace

    workspace = load_workspace()
    return [*workspace.config.students, *workspace.seeded]


def _teachers() -> list[str]:
    from unic_pipe.pipeline.workspace.configuration import load_workspace

    return list(load_workspace().config.teachers)


def _datasets() -> list[str]:
    from unic_pipe.pipeline.workspace.configuration import load_workspace

    return list(load_workspace().config.samples.datasets)


def _benchmarks() -> list[str]:
    from unic_pipe.schemas.benchmarks import cards

    return list(cards())


students = _of_configuration(_students)
teachers = _of_configuration(_teachers)
datasets = _of_configuration(_datasets)
benchmarks = _of_configuration(_benchmarks)
