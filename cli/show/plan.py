"""How a plan looks on a terminal, and sizes and times as people type them."""

import re
from collections.abc import Mapping
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unic_pipe.pipeline.process.progress import duration, human_bytes
from unic_pipe.pipeline.process.wrapping import Wrapped
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.plans import PlanReport, PlanRow

HOUR_S = 3600.0
_BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15} | {
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40
}  # fmt: skip
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "days": 86_400, "w": 604_800}


def plan_lines(report: PlanReport) -> RenderableType:
    """The rows, the totals of each stage, and whether it fits; within 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("artefact")
    for name in ("images", "views", "tokens", "codec", "bits", "size", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    notes = []
    for row in report.rows:
        if row.images:
            table.add_row(*_cells(row))
        else:
            notes.append(Text(f"{row.name}: {row.note}", style="yellow"))
    if report.unknown:
        step = "unic-pipe index" if report.unknown[0].stage == "index" else "unic-pipe teachers --fetch"
        names = ", ".join(row.name for row in report.unknown)
        notes += [Text(), Text(f"✘ not planned: without {names} there is no sum. Next: {step}", style="bold red")]
        return Group(*([table] if table.row_count else []), *notes)
    parts: list[RenderableType] = [table, *notes, Text()]
    for stage, plan in report.stages.items():
        hours = "" if plan.hours is None else f", {duration(plan.hours * HOUR_S)}"
        if stage == "extract" and plan.hours and report.hours_spread is not None:
            hours += f" ± {max(1, round(100 * report.hours_spread))} %"
        off = report.bytes_spread if stage == "extract" else None
        size = human_bytes(plan.bytes) + ("" if off is None else f" ± {max(1, round(100 * off))} %")
        what = [f"{size} to write in {plan.files:,} files{hours}"] if plan.files else []
        what += [f"{plan.probes:,} probe{'s'[: plan.probes > 1]} (not timed)"] if plan.probes else []
        parts.append(Text(f"{stage:<9} {'; '.join(what) or 'nothing left to do'}"))
    rate = "" if report.mb_per_s is None else f", {report.mb_per_s:,.3g} MB/s"
    slow = "" if report.bottleneck is None else f"; extraction waits for {report.bottleneck} first"
    parts.append(Text(f"on {report.device}, {report.cores} cores{rate}{slow}", style="dim"))
    if report.measured is not None:
        when = datetime.fromisoformat(report.measured).astimezone()
        parts.append(Text(f"measured on {when:%d %B %Y at %H:%M}; to measure again: unic-pipe plan --anew", "dim"))
    total = f"{human_bytes(report.bytes)} and {report.inodes:,} inodes; {human_bytes(report.free_bytes)} free"
    fits = (
        Text(f"✔ fits: {total}", style="green") if report.fits else Text(f"✘ does not fit: {total}", style="bold red")
    )
    return Group(*parts, fits)


def _cells(row: PlanRow) -> tuple[RenderableType, ...]:
    return (
        Wrapped(row.name.removeprefix("features/")),
        f"{row.images:,}",
        str(row.views),
        "" if row.token is None else row.token if row.token == "cls" else f"{row.tokens}×patch",
        row.codec or "",
        "" if row.bits_per_value is None else f"{row.bits_per_value:.2f}",
        human_bytes(row.bytes),
        "" if row.hours is None else duration(row.hours * HOUR_S) if row.hours else "done",
    )


def parse_bytes(text: str) -> float:
    """Bytes of `1TB`, `200 GB`, `1.5TiB`. Raises UserError: not a size."""
    return _parse(text, _BYTES, "--disk", "1TB or 200GB")


def parse_seconds(text: str) -> float:
    """Seconds of `48h`, `30min`, `3d`. Raises UserError: not a time."""
    return _parse(text, _SECONDS, "--deadline", "48h, 30min or 3d")


def _parse(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9][0-9,]*\.?[0-9]*)\s*([A-Za-z]*)\s*", text)
    unit = units.get(match[2].lower()) if match is not None else None
    if match is None or unit is None or not float(match[1].replace(",", "")):
        raise UserError(f"{option} {text}: expected for instance {example}.")
    return float(match[1].replace(",", "")) * unit
