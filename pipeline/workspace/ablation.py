"""The paper's ladder of variants (UNIC, arXiv 2408.05088, section 4.2): one ingredient more at a time. Free of torch.

`NAME-basic`: one projector per teacher on the last block, raw targets, every teacher kept. `NAME-std`: standardized
targets. `NAME-ladder`: the ladder of projectors. `NAME`: teacher dropping, which is the configured student itself.
"""

from __future__ import annotations

from unic_pipe.pipeline.workspace.labels import BASIC, LADDER, STANDARDIZED, require_free, student_named
from unic_pipe.schemas.config import Config, LossConfig, StudentConfig
from unic_pipe.schemas.errors import UserError


def ablation(config: Config, name: str) -> dict[str, StudentConfig]:
    """The variants of a configured student, from the barest to itself. They share one cache and train in one pass.

    Raises:
        UserError: no such student, one that lacks an ingredient itself, or other students have the variants' names.
    """
    full = student_named(config, name)
    missing = [ingredient for ingredient, there in _ingredients(full).items() if not there]
    if missing:
        raise UserError(
            f"Student {name} has no {' and no '.join(missing)}, so there is nothing to take away.",
            f"Use all three in students.{name}, or choose another one with --student.",
        )

    def loss(**changes: object) -> LossConfig:
        return full.loss.model_copy(update={"drop_probability": 0.0, **changes})

    single = full.ladder.model_copy(update={"blocks": "last"})
    variants = {
        name + BASIC: full.model_copy(update={"ladder": single, "loss": loss(standardize="none")}),
        name + STANDARDIZED: full.model_copy(update={"ladder": single, "loss": loss()}),
        name + LADDER: full.model_copy(update={"loss": loss()}),
        name: full,
    }
    require_free(config, name, variants)
    return variants


def _ingredients(student: StudentConfig) -> dict[str, bool]:
    return {
        "standardization": student.loss.standardize != "none",
        "ladder": student.ladder.kind == "ladder" and student.ladder.blocks != "last",
        "teacher dropping": student.loss.balance == "dropping" and student.loss.drop_probability > 0,
    }
