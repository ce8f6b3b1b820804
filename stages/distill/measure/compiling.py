"""Whether compiling a student's steps is worth its time: measured on made-up batches before a training begins."""

from collections.abc import Callable

import torch

from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.measure.cost import StepCost, step_cost

LEAST_S = 600.0
"""A training that takes no longer is not worth the try: compiling takes a minute or so."""


def compiling_pays(
    name: str,
    definition: StudentDefinition,
    steps: int,
    device: torch.device,
    say: Callable[[str], None],
    least: float = LEAST_S,
    cost: Callable[..., StepCost] = step_cost,
) -> bool:
    """Whether compiled steps save more time in a training of so many than compiling takes; what was found is said.

    Where compiling fails (a CPU without a C++ compiler), it does not pay.
    """
    plain = cost(definition, str(device), whole=True)
    if plain.seconds * steps < least:
        say(f"{name}: {steps:,} steps of {1000 * plain.seconds:,.0f} ms are too few to compile them.")
        return False
    say(f"{name}: compiling its steps to see whether that pays")
    try:
        compiled = cost(definition, str(device), compiled=True)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        say(f"{name}: steps cannot be compiled here, so they are not ({reason}).")
        return False
    saved = steps * (plain.seconds - compiled.seconds)
    pays = saved > compiled.first_seconds
    say(
        f"{name}: a step takes {1000 * plain.seconds:,.0f} ms, compiled {1000 * compiled.seconds:,.0f} ms after "
        f"{compiled.first_seconds:,.0f} s: steps are {'' if pays else 'not '}compiled."
    )
    return pays
