"""What a configuration may say, and was probably not meant so: one line each, told before hours are spent."""

from collections import defaultdict
from collections.abc import Sequence

from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.names import colliding
from unic_pipe.schemas.errors import UnicPipeError


def remarks(inventory: Inventory) -> tuple[str, ...]:
    """All of them, about what is here already: encoders without weights are left aside."""
    return (*same_teachers(inventory, tuple(inventory.config.teachers)), *_shared_names(inventory))


def same_teachers(inventory: Inventory, teachers: Sequence[str]) -> list[str]:
    """Teachers that are one network under several names: equal weights, read at equal sizes, with equal mean and std."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in teachers:
        try:
            names[inventory.teacher(name).digest].append(name)
        except UnicPipeError:  # told where they are asked for
            continue
    return [
        f"Teachers {' and '.join(same)} are the same weights, read alike: they are extracted, stored and learned "
        f"{len(same)} times. Keep one, or give the other weights of its own."
        for same in names.values()
        if len(same) > 1
    ]


def _shared_names(inventory: Inventory) -> list[str]:
    """Features of earlier versions, which did not refuse this."""
    return [
        f"{one} and {other} share the name features/{name}, under which only the last one is found; their folders are told "
        "apart by digests, and stay good. New ones need other names."
        for name, one, other in colliding(inventory.config, inventory.workspace.file)
    ]
