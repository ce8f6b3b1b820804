"""What predicts the teachers' tokens from a student's: a ladder of projectors, or heads of other kinds. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from unic_pipe.schemas.base import Model, one_of
from unic_pipe.schemas.places import Count
from unic_pipe.schemas.references import problem


@dataclass(frozen=True)
class Head:
    """One way to predict a teacher's tokens from the student's; `pipeline.students.heads` builds them."""

    formula: str
    source: str
    fields: tuple[str, ...] = ()
    """Of `LadderConfig`, those that shape it."""
    finished: bool = True
    """Whether it is given the tokens that the student gives after export; otherwise its last rung, before a final norm."""


LADDER = "ladder"
HEADS: dict[str, Head] = {
    LADDER: Head(
        "sum over rungs of Linear, GELU, Linear",
        "UNIC, section 3.2",
        ("blocks", "hidden", "last_hidden"),
        finished=False,
    ),
    "linear": Head("Linear", "lightly-train"),
    "norm_linear": Head("LayerNorm, Linear", "Proteus, arXiv 2407.10366; Theia's translators, with no convolutions"),
    "mlp": Head("Linear without bias, LayerNorm, GELU, Linear without bias", "EUPE, arXiv 2603.22387", ("hidden",)),
    "mlp_v1": Head("Linear, LayerNorm, ReLU, [again] × layers, Linear", "AM-RADIO", ("hidden", "layers")),
    "mlp_v2": Head(
        "Linear, [x + Linear(GELU(LayerNorm x))] × layers, LayerNorm, GELU, Linear", "RADIO", ("hidden", "layers")
    ),
    "block": Head(
        "transformer blocks over cls and patches together, Linear",
        "DUNE, arXiv 2503.14405",
        ("layers",),
        finished=False,
    ),
}
"""By the name that documents have."""


class LadderConfig(Model):
    """What predicts the teachers' tokens: the ladder of expendable projectors (UNIC, section 3.2), or other heads."""

    kind: Annotated[str, one_of(lambda: HEADS)] = LADDER
    """`ladder`; or heads on the student's last tokens, one for every teacher and token type (`block`: one for both)."""
    blocks: Literal["all", "last"] | tuple[int, ...] = "all"
    """Encoder blocks (counted from 0) that feed the ladder; `last` is a single projector at the top."""
    hidden: Count = 768
    """Hidden width of a projector or an MLP."""
    last_hidden: Count = 3072
    """Hidden width of the projector on the last block."""
    layers: Annotated[int, Field(ge=0, le=100)] = 1
    """Inner layers of `mlp_v1` and `mlp_v2`, blocks of `block`."""

    @model_validator(mode="after")
    def _fields_shape_it(self) -> LadderConfig:
        fields, shaping = type(self).model_fields, ("kind", *HEADS[self.kind].fields)
        idle = [name for name in fields if name not in shaping and getattr(self, name) != fields[name].default]
        if idle:
            message = f"says nothing about a head of kind {self.kind}: leave it out"
            raise ValidationError.from_exception_data(
                "LadderConfig", [problem((idle[0],), message, getattr(self, idle[0]))]
            )
        return self
