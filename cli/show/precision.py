"""How measured types of teachers look on a terminal, and what they are worth in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unic_pipe.pipeline.extraction.dtypes import HEADROOM_DB, THREADS, WORTH
from unic_pipe.pipeline.process.wrapping import Wrapped
from unic_pipe.schemas.precision import PrecisionTrial, TeacherPrecision

_EQUAL_DB = 200.0


def precision_lines(found: Sequence[TeacherPrecision]) -> RenderableType:
    """A row a teacher and type; within 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("teacher")
    table.add_column("computed", no_wrap=True)
    for name in ("images/s", "× float32", "cls dB", "patch dB"):
        table.add_column(name, justify="right", no_wrap=True)
    notes = []
    for each in found:
        for number, trial in enumerate(each.trials):
            cells = f"{trial.images_per_second:,.3g}", f"{trial.speedup:.2f}", _db(trial, "cls"), _db(trial, "patch")
            style = "green" if trial.name == each.chosen else ""
            table.add_row(Wrapped("" if number else each.teacher), trial.name, *cells, style=style)
        if each.remark:
            notes.append(Text(f"{each.teacher}: not measured: {each.remark}", "yellow"))
    return Group(*([table] if table.row_count else []), *notes)


def _db(trial: PrecisionTrial, token: str) -> str:
    found = {str(name): value for name, value in trial.snr_db.items()}.get(token)
    return "" if found is None else "equal" if found == _EQUAL_DB else "not finite" if found == 0 else f"{found:.1f}"


def worth(found: Sequence[TeacherPrecision], snr_db: float, calibrated: bool) -> Iterator[str]:
    """What follows from it, a line each."""
    measured = [each for each in found if each.trials]
    for each in measured:
        if each.chosen != each.configured:
            told = each.configured if each.chosen == "float32" else each.chosen
            of = next((trial for trial in each.trials if trial.name == told), each.trials[0])
            what = f"{of.name} is {of.speedup:.1f} × as fast as float32, features {min(of.snr_db.values()):.0f} dB"
            yield f"{each.teacher}: {each.chosen} ({what})"
    if measured and not calibrated:
        yield "This codec keeps more than a rounded type gives: types stay as they are (cache.codec: auto, or klt)."
    elif measured and all(each.chosen == each.configured for each in measured):
        above = f"{snr_db + HEADROOM_DB:g} dB ({HEADROOM_DB:g} above cache.snr_db)"
        yield f"Types stay as they are: no other is {WORTH} × as fast as float32 with features of {above}."
    threads = [trial for each in measured for trial in each.trials if trial.name.startswith(THREADS)]
    if threads and min(trial.speedup for trial in threads) >= WORTH:
        yield f"compute.{threads[0].name} would be faster for all of them; their features change in the last bits."
