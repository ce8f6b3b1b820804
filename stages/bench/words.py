"""A bench in words: one line for every part, used by the terminal and by the page."""

from unic_pipe.schemas.bench import BenchReport, BenchRow, Part

TARGETS = {"cpu": 0.85, "gpu": 0.95}
"""Efficiency that a stage should reach; on a GPU also of the speed-up over live teachers against its bound."""
TITLES: dict[Part, str] = {
    "extract": "Extraction, per forward pass",
    "distill": "Distillation from the cache",
    "live": "Distillation with live teachers",
    "ladder": "The ladder alone",
    "probe": "Probe",
}


def headlines(report: BenchReport) -> dict[Part, str]:
    """What each measured part comes to, and what limits it."""
    found: dict[Part, str] = {}
    target = TARGETS["cpu" if report.device == "cpu" else "gpu"]
    for bound in report.bounds:
        rate = row_of(report, bound.part, "wall").images / bound.wall_seconds
        unit = "forward passes" if bound.part == "extract" else "images"
        found[bound.part] = (
            f"{bound.ratio:.2f} of what its pieces allow (target {target:.2f}); {rate:,.1f} {unit}/s; "
            f"most of the bound is {bound.limit}; they make up {bound.cpu_ratio:.2f} of its CPU time"
        )
        if report.device == "cpu" and bound.bound_seconds > bound.host_seconds:
            found[bound.part] += (
                f"; a step takes {report.threads[bound.part]} of {report.cores} cores (distill.threads)"
            )
    if report.live_speedup is not None and report.live_bound is not None:
        share = report.live_speedup / report.live_bound
        found["live"] = (
            f"the cache is {report.live_speedup:.2f} × as fast; teachers + student step over student step allow "
            f"{report.live_bound:.2f} × ({share:.2f} of it)"
        )
    ladder, products = row_or_none(report, "ladder", "wall"), row_or_none(report, "ladder", "products")
    if ladder is not None and products is not None:
        step = row_of(report, "distill", "student step")
        # CPU seconds count less of what else runs on the machine.
        cost, least, whole = (
            row.cpu_seconds if report.device == "cpu" else row.seconds for row in (ladder, products, step)
        )
        found["ladder"] = (
            f"its matrix products are {least / cost:.2f} of it; it is {cost / whole:.0%} of the student step"
        )
    fit = row_or_none(report, "probe", "fit")
    if fit is not None:
        found["probe"] = f"{fit.seconds:.2f} s for one fit on {fit.images:,} rows ({fit.note})"
    return found


def comparisons(report: BenchReport) -> list[str]:
    """How each part fares against what one would write instead."""
    return [
        f"{TITLES[a.part].partition(',')[0]} against {a.peer}: {a.ratio:.2f} × as fast ({a.low_ratio:.2f}–{a.high_ratio:.2f}); "
        f"{a.images / a.seconds:,.1f}/s against {a.images / a.peer_seconds:,.1f}/s"
        for a in report.against
    ]


def conditions(report: BenchReport) -> str:
    """The machine, and what the figures depend on."""
    threads = ", ".join(f"{count} in {part}" for part, count in report.threads.items())
    return (
        f"{report.machine}, {report.cores} cores, device {report.device}, threads of a step: {threads}; "
        f"median of {report.repeats}; other programs used {report.others_cores:.1f} cores (load before: {report.load:.1f})"
    )


def row_or_none(report: BenchReport, part: Part, name: str) -> BenchRow | None:
    """The row of a piece."""
    return next((row for row in report.rows if (row.part, row.name) == (part, name)), None)


def row_of(report: BenchReport, part: Part, name: str) -> BenchRow:
    """The row of a piece that was measured."""
    return next(row for row in report.rows if (row.part, row.name) == (part, name))
