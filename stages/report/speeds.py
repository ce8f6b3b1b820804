"""How fast encoders are, as far as `plan` measured them in the working folder; the report measures nothing."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.pipeline.workspace.evaluation_plans import evaluated_encoders
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.labels import setting_of
from unic_pipe.schemas.plans import Measurement


class Speeds(NamedTuple):
    """Images a second of forward passes, by encoder, all on one kind of device: of a CPU, on one core."""

    device: str = ""
    by_name: Mapping[str, float] = {}


def measured_speeds(inventory: Inventory) -> Speeds:
    """On the kind of device on which most encoders were measured. A student's are also those of its architecture with random
    weights, which `plan` takes for one that is still to come."""
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    store = LocalStore(inventory.folder / "runs")
    for path in sorted(store.root.glob("measurements/????????.json")):
        found = usable_document(store, f"measurements/{path.name}", Measurement)
        if found is not None and found.forward_seconds:
            seconds[found.device.partition(":")[0]][found.encoder].append(found.forward_seconds)
    if not seconds:
        return Speeds()
    students = inventory.config.students
    digests: dict[str, tuple[str, ...]] = {}
    for encoder, role in evaluated_encoders(inventory)[0]:
        like = students.get(setting_of(encoder.name)) if role == "student" else None
        stand_in = (inventory.baseline(setting_of(encoder.name), like).digest,) if like is not None else ()
        digests[encoder.name] = (encoder.digest, *stand_in)
    by_device = {
        device: {
            name: 1 / statistics.median(known[digest])
            for name, either in digests.items()
            if (digest := next((d for d in either if d in known), None)) is not None
        }
        for device, known in sorted(seconds.items())
    }
    device = max(by_device, key=lambda d: len(by_device[d]))
    return Speeds(device, by_device[device])
