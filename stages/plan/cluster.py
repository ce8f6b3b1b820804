"""What a plan comes to on a cluster: hours, bytes, bandwidth of a node and the first bottleneck. Pure arithmetic.

Nodes are taken to have disks as fast as the one that was measured; where they share one, the bandwidths say what it has
to give. The network is not measured: what training sends through it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.extraction.sizes import VIEWS_AT_ONCE, Extent, Work, codec_label
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.plans import ClusterPlan, ClusterRow, Measurement
from unic_pipe.schemas.students import StudentDefinition

HOUR_S = 3600.0
WAY_THERE_AND_BACK = 2
"""Times that an all-reduce sends a gradient past every node: summed once around the ring, and handed out."""


class Cost(Protocol):
    """What a training step costs."""

    @property
    def seconds(self) -> float:
        """Seconds of a step."""

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint."""

    @property
    def export_bytes(self) -> int:
        """Bytes of the exported encoder."""

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of all parameters."""


StepCost = Callable[[StudentDefinition, str], Cost]


@dataclass(frozen=True)
class Cluster:
    """Equal nodes. `gpus` 0: encoders and students run on the nodes' cores."""

    nodes: int
    gpus: int
    cores: int

    @property
    def processes(self) -> int:
        """One for every GPU, or for every node."""
        return self.nodes * max(1, self.gpus)


class PlannedFeatures(Protocol):
    """A feature folder of the plan."""

    @property
    def need(self) -> FeatureNeed:
        """What it holds."""

    @property
    def measured(self) -> Measurement:
        """What it was measured with."""

    @property
    def extent(self) -> Extent:
        """Rows and blocks."""

    @property
    def forwards(self) -> int:
        """Images × views still to be encoded."""

    @property
    def stage(self) -> str:
        """`extract` or `evaluate`."""


@dataclass(frozen=True)
class StudentWork:
    """A student that is still to be trained."""

    name: str
    definition: StudentDefinition
    steps: int
    cost: Cost
    loading_seconds: float
    """Of one core, to read, decode and render an image."""


@dataclass(frozen=True)
class Measured:
    """What the plan rests on."""

    device: str
    extraction: Work
    written_bytes: int
    """Still to be written by the extraction."""
    disk_rate: float
    """Bytes per second."""
    throughput: float | None
    """Image-forwards per second of one GPU (or, without GPUs, of one node), if given."""


def plan_cluster(
    cluster: Cluster,
    measured: Measured,
    features: Sequence[PlannedFeatures],
    students: Sequence[StudentWork],
    image_bytes: Mapping[str, float],
) -> ClusterPlan:
    """The plan of extraction and of every student. `image_bytes`: mean of an encoded image, by dataset.

    Raises:
        UserError: GPUs are asked about, and neither was one measured nor its throughput given.
    """
    if cluster.gpus and measured.device == "cpu" and measured.throughput is None:
        raise UserError(
            "Nothing here tells how fast the cluster's GPUs are: this plan was measured on a CPU.",
            "Give the image-forwards per second of one GPU (--throughput 2000), or plan on a machine with one.",
        )
    training = [f for f in features if f.stage == "extract"]
    forwards = sum(f.forwards for f in training)
    rows = [_extraction(cluster, measured, training, forwards, image_bytes)]
    faster = _faster(cluster, measured, forwards)
    rows += [_student(cluster, measured, student, training, image_bytes, faster) for student in students]
    return ClusterPlan(
        nodes=cluster.nodes,
        gpus=cluster.gpus,
        cores=cluster.cores,
        hours=sum(row.hours for row in rows),
        rows=tuple(rows),
    )


def _extraction(
    cluster: Cluster,
    measured: Measured,
    features: Sequence[PlannedFeatures],
    forwards: int,
    image_bytes: Mapping[str, float],
) -> ClusterRow:
    work = measured.extraction
    cores = cluster.nodes * cluster.cores
    costs = {
        "decoding": work.decoding / cores,
        "rendering": work.rendering / cores,
        "encoding": work.encoding / cores,
    }
    if measured.throughput is not None:
        encoders = forwards / measured.throughput / cluster.processes
    else:
        encoders = work.encoders / (cluster.processes if cluster.gpus else cores)
    beside = {"encoders": encoders, "disk": measured.written_bytes / cluster.nodes / measured.disk_rate}
    if not cluster.gpus:
        costs["encoders"] = beside.pop("encoders")
    seconds = max(sum(costs.values()), *beside.values())
    slowest = max(beside, key=lambda name: beside[name])
    read = 0.0
    for dataset in dict.fromkeys(f.need.dataset for f in features):
        most = max(f.forwards for f in features if f.need.dataset == dataset)
        images = max(f.extent.rows for f in features if f.need.dataset == dataset)
        read += min(most, ceil(most / max(1, images) / VIEWS_AT_ONCE) * images) * image_bytes[dataset]
    return ClusterRow(
        name="extract",
        processes=cluster.processes,
        hours=seconds / HOUR_S,
        bytes=measured.written_bytes,
        read_mb_per_s=_rate(read / cluster.nodes, seconds),
        write_mb_per_s=_rate(measured.written_bytes / cluster.nodes, seconds),
        bottleneck=None
        if not seconds
        else slowest
        if beside[slowest] == seconds
        else max(costs, key=lambda name: costs[name]),
    )


def _faster(cluster: Cluster, measured: Measured, forwards: int) -> float:
    """How much faster a process of the cluster runs an encoder than what was measured here; 1 where that is the same."""
    work = measured.extraction
    if measured.throughput is None or not forwards or not work.encoders:
        return 1.0
    here = forwards / work.encoders
    # On a CPU the measured seconds are those of one core, and a student's step has all cores of its threads.
    return measured.throughput / here


def _student(
    cluster: Cluster,
    measured: Measured,
    student: StudentWork,
    features: Sequence[PlannedFeatures],
    image_bytes: Mapping[str, float],
    faster: float,
) -> ClusterRow:
    """Data parallel: as many processes as divide the sample streams share every batch."""
    config = student.definition.config
    batch = config.optimizer.batch
    used = max(d for d in range(1, config.streams + 1) if config.streams % d == 0 and d <= cluster.processes)
    nodes = min(cluster.nodes, ceil(used / max(1, cluster.gpus)))
    threads = config.threads if measured.device == "cpu" else 1
    step = student.cost.seconds * (threads if faster != 1.0 else 1) / faster / used
    loading = batch * student.loading_seconds / (nodes * cluster.cores)
    mine = [f for f in features if f.need.dataset == config.dataset and f.need.encoder in _teachers(student)]
    cached = batch * sum(_row_bytes(f, config.loss.tokens) for f in mine)
    images = batch * image_bytes.get(config.dataset, 0.0)
    costs = {"student": step, "views": loading, "disk": (cached + images) / nodes / measured.disk_rate}
    seconds = max(costs.values()) if cluster.gpus else max(step + loading, costs["disk"])
    sent = WAY_THERE_AND_BACK * student.cost.gradient_bytes * (nodes - 1) / nodes
    short = used < cluster.processes
    return ClusterRow(
        name=f"students/{student.name}",
        processes=used,
        hours=student.steps * seconds / HOUR_S,
        bytes=student.cost.checkpoint_bytes + student.cost.export_bytes,
        read_mb_per_s=_rate((cached + images) / nodes, seconds),
        write_mb_per_s=0.0,
        network_mb_per_s=_rate(sent, seconds),
        bottleneck=max(costs, key=lambda name: costs[name]),
        note=f"{used} of {cluster.processes} processes: more need students.{student.name}.streams: {cluster.processes} "
        "(and a batch that it divides)"
        if short
        else "",
    )


def _teachers(student: StudentWork) -> set[str]:
    return {teacher.name for teacher in student.definition.teachers}


def _row_bytes(features: PlannedFeatures, tokens: str) -> float:
    label = codec_label(features.need.definition.codec)
    return sum(
        codecs[label].row_bytes for token, codecs in features.measured.codecs.items() if tokens in ("both", token)
    )


def _rate(size: float, seconds: float) -> float:
    """MB/s."""
    return size / 1e6 / seconds if seconds else 0.0
