"""The arithmetic of `bench`: from the times of pieces to the least wall time that they allow.

On a GPU the device, the host's cores and the disk work beside each other, so the bound is the slowest of the three. On
a CPU that does everything itself it is all CPU seconds of the pieces over the cores, but no less than a training's steps
take, which come one behind the other, with the threads that they have.
"""

from collections.abc import Mapping, Sequence

from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.schemas.bench import BenchRow, Bound, Part, Resource

WALL = "wall"
"""The piece that is the part itself, as the command runs it."""


def bound_of(
    part: Part, rows: Sequence[BenchRow], cores: int, on_gpu: bool, threads: int | None = None
) -> Bound | None:
    """A part's bound from its rows; None when the part or its pieces were not measured.

    `threads`: of the pieces that are a CPU's as a device, where one waits for the other; None: they keep all cores busy.
    """
    pieces = [row for row in rows if row.part == part and row.resource is not None]
    walls = [row for row in rows if row.part == part and row.name == WALL]
    if not pieces or not walls:
        return None
    host = sum(row.cpu_seconds for row in pieces if row.resource == "host") / cores
    disk = sum(row.seconds for row in pieces if row.resource == "disk")
    device = sum(row.seconds if on_gpu else row.cpu_seconds for row in pieces if row.resource == "device")
    seconds = max(device, host, disk)
    if not on_gpu:
        steps = device / min(threads or cores, cores)
        host, device = host + device / cores, 0.0
        seconds = max(host, steps)
    return Bound(
        part=part,
        wall_seconds=walls[0].seconds,
        bound_seconds=seconds,
        limit=_limit(pieces, {"device": device, "host": host, "disk": disk} if on_gpu else {"host": host}),
        device_seconds=device,
        host_seconds=host,
        disk_seconds=disk,
        cpu_ratio=sum(row.cpu_seconds for row in pieces if row.resource != "disk") / max(walls[0].cpu_seconds, 1e-9),
    )


def _limit(pieces: Sequence[BenchRow], resources: Mapping[Resource, float]) -> str:
    """The largest piece of the resource that limits; on a CPU alone everything shares the one."""
    slowest = max(resources, key=lambda name: resources[name])
    if len(resources) > 1 and slowest != "host":
        return slowest
    mine = [row for row in pieces if row.resource == "host" or (len(resources) == 1 and row.resource == "device")]
    return max(mine, key=lambda row: row.cpu_seconds).name


def rows_of(
    part: Part,
    watch: Stopwatch,
    images: int,
    resources: Mapping[str, Resource],
    notes: Mapping[str, str] | None = None,
) -> list[BenchRow]:
    """The rows of everything that a stopwatch has timed; `resources` says which pieces belong to the bound."""
    rows = []
    for name in watch.pieces():
        seconds, low, high = watch.wall(name)
        rows.append(
            BenchRow(
                part=part,
                name=name,
                resource=resources.get(name),
                images=images,
                seconds=seconds,
                low_seconds=low,
                high_seconds=high,
                cpu_seconds=watch.cpu(name),
                note=(notes or {}).get(name, ""),
            )
        )
    return rows


def with_shares(rows: Sequence[BenchRow], on_gpu: bool) -> list[BenchRow]:
    """The rows with every piece's share in the seconds of its part; on a GPU in those of its resource."""
    totals: dict[tuple[Part, Resource | None], float] = {}
    for row in rows:
        if (cost := _cost(row, on_gpu)) is not None:
            key = row.part, row.resource if on_gpu else None
            totals[key] = totals.get(key, 0.0) + cost
    found = []
    for row in rows:
        cost, total = _cost(row, on_gpu), totals.get((row.part, row.resource if on_gpu else None), 0.0)
        share = cost / total if cost is not None and total > 0 else None
        found.append(row.model_copy(update={"bound_share": share}))
    return found


def _cost(row: BenchRow, on_gpu: bool) -> float | None:
    if row.resource is None or (row.resource == "disk" and not on_gpu):
        return None
    return row.seconds if on_gpu and row.resource != "host" else row.cpu_seconds
