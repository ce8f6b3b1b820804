"""Students of a working folder of the tests: configured by what differs, and trained as `unic-pipe distill` does."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML


def configure(work: Any, students: dict[str, dict[str, Any]], **top: Any) -> None:
    """Students by name: what differs from the workspace's own."""
    yaml, file = YAML(), work.folder / "unic-pipe.yaml"
    body = yaml.load(file)
    base = body["students"]["tiny"]
    body["students"] = {name: _merged(base, changes) for name, changes in students.items()}
    yaml.dump({**body, **top}, file)


def _merged(base: Any, changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in changes.items():
        found[key] = _merged(found.get(key, {}), value) if isinstance(value, dict) else value
    return found


def train(work: Any, *names: str, stop_at: int = 0, live: bool = False, overrides: tuple[str, ...] = ()) -> list[str]:
    """Train as `unic-pipe distill` does; what was said, also in `work.said`. Stops after so many images."""
    from unic_pipe.pipeline.process.progress import SilentReporter
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.stages.distill.parallel.world import Context
    from unic_pipe.stages.distill.stage import distill_students

    work.said = said = list[str]()
    stop = Stop()

    class Reporter(SilentReporter):
        done = 0

        def say(self, text: str) -> None:
            said.append(text)

        def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Any:
            said.append(f"{title}: {done}/{total}")
            return Counting()

    class Counting:
        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *details: object) -> None:
            pass

        def advance(self, amount: int = 1) -> None:
            Reporter.done += amount
            if 0 < stop_at <= Reporter.done:
                stop.request()

        def note(self, text: str) -> None:
            pass

    inventory = work.inventory(*overrides)
    inventory = inventory.with_live_teachers() if live else inventory
    students = names or tuple(inventory.config.students)
    distill_students(inventory, students, Context(Reporter(), stop), device="cpu", live_check=False)
    return said


def weights(work: Any, name: str) -> dict[str, bytes]:
    """What must not depend on company or interruptions: export, statistics, last checkpoint."""
    folder = work.student(name)
    files = [*folder.glob("export/*"), *folder.glob("statistics/*"), folder / "latest.json", folder / "manifest.json"]
    return {f.name: f.read_bytes() for f in [*files, sorted(folder.glob("checkpoints/*.pt"))[-1]]}
