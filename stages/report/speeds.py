"""How fast encoders are, as far as `plan` measured them in the working folder; the report measures nothing."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.pipeline.workspace.evaluation_plans import evaluated_encoders
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.labels import setting_of
from unic_pipe.pipeline.workspace.names import BASELINE
from unic_pipe.schemas.plans import Measurement


class Speeds(NamedTuple):
    """Images a second of forward passes, by encoder, all on one kind of device: of a CPU, on one core."""

    device: str = ""
    by_name: Mapping[str, float] = {}


def measured_speeds(inventory: Inventory) -> Speeds:
    """On the kind of device on which most encoders were measured: the median of all measurements. A student and its
    architecture with random weights, which `plan` takes for one that is still to come, are one network."""
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    store = LocalStore(inventory.folder / "runs")
    for path in sorted(store.root.glob("measurements/????????.json")):
        found = usable_document(store, f"measurements/{path.name}", Measurement)
        if found is not None and found.forward_seconds:
            seconds[found.device.partition(":")[0]][found.encoder].append(found.forward_seconds)
    if not seconds:
        return Speeds()
    students, same = inventory.config.students, defaultdict[str, set[str]](set)
    networks: dict[str, str] = {}
    for encoder, role in evaluated_encoders(inventory)[0]:
        setting = setting_of(encoder.name).removesuffix(BASELINE)
        student = students.get(setting) if role in ("student", "baseline") else None
        alike = inventory.baseline(setting, student) if student is not None else encoder
        # A student of before may be another network than the one that is configured now.
        network = alike.digest if _shape(alike) == _shape(encoder) else encoder.digest
        networks[encoder.name] = network
        same[network] |= {network, encoder.digest}
    by_device: dict[str, dict[str, float]] = {}
    for device, known in sorted(seconds.items()):
        found_of = {
            name: [s for digest in same[network] for s in known.get(digest, ())] for name, network in networks.items()
        }
        by_device[device] = {name: 1 / statistics.median(values) for name, values in found_of.items() if values}
    device = max(by_device, key=lambda d: len(by_device[d]))
    return Speeds(device, by_device[device])


def _shape(encoder: ResolvedEncoder) -> tuple[object, ...]:
    made_of = encoder.definition
    return made_of.architecture, made_of.model_args, made_of.image_size
