"""What a student minimises: the terms of its loss, how targets are normalised and teachers weighed.

To add a kind of term: one file in `stages/distill/losses` with a function of predictions and targets, and a line in `KINDS`.
Free of torch, because plans and `status` read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from unic_pipe.schemas.base import Model, Name, one_of
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.places import Fraction
from unic_pipe.schemas.references import problem

TokenType = Literal["cls", "patch"]
TOKENS: tuple[TokenType, ...] = ("cls", "patch")
Normaliser = Literal["exact", "ema", "none", "phi_s", "theia", "batch"]
EXACT: tuple[Normaliser, ...] = ("exact", "phi_s", "theia")
"""Normalisers that rest on the cache's exact statistics."""
MOVING: tuple[Normaliser, ...] = ("ema", "batch")
"""Those that keep averages of the batches."""
SHORT = ("cosine", "smooth_l1")
"""Kinds that have a field of their own: what these two can say is stored in them."""


@dataclass(frozen=True)
class Kind:
    """One kind of term: a loss of every image against one teacher's tokens of one type."""

    code: str
    """`module:function` of its code; a leading dot stands for `stages.distill.losses`. It is given predictions and
    targets, float32 (B, D) or (B, P, D), and what it `needs` by that name, and returns (B,)."""
    formula: str
    source: str
    tokens: tuple[TokenType, ...] = TOKENS
    needs: Literal["dispersion", "centers", "logits", "masked", "queue"] | None = None
    """What it is given as well, measured of the teacher's targets when training starts. `dispersion`: their spread.
    `centers`: the means of the images' classes, (B, D). `logits`: it is given those of C classes that a classifier of the
    teacher's makes of both sides, (B, C), in their place. `masked`: its predictions are of images without
    some patches; it is given which (`mask_BP`), and the masked `cells` per image of the global batch. `queue`: the targets
    of the last global batches, scaled to length 1, (Q, D)."""
    options: tuple[str, ...] = ()
    """Fields of a term that it takes."""


KINDS: dict[str, Kind] = {
    "cosine": Kind(".cosine:cosine", "1 - cos(s, t), mean over tokens", "UNIC, arXiv 2408.05088, section 3.1"),
    "smooth_l1": Kind(
        ".smooth_l1:smooth_l1", "smooth-L1 (beta 1), mean over dimensions and tokens", "UNIC, section 3.1"
    ),
    "mse": Kind(
        ".mse:mse", "squared error, mean over dimensions and tokens", "PHI-S, arXiv 2410.01680; Theia's first term"
    ),
    "flat_cosine": Kind(
        ".flat_cosine:flat_cosine", "1 - cos of an image's whole map as one vector", "Theia, arXiv 2407.20179"
    ),
    "angle": Kind(
        ".angle:angle",
        "angle(s, t)² / mean of angle(t, μ)² with the teacher's mean direction μ",
        "after C-RADIOv4, arXiv 2601.17237, not verified word by word",
        needs="dispersion",
    ),
    "gram": Kind(
        ".gram:gram",
        "squared error of the cosines between an image's own patches, mean over pairs",
        "DINOv3, arXiv 2508.10104",
        tokens=("patch",),
    ),
    "unit_maps": Kind(
        ".unit_maps:unit_maps",
        "sum over cells of |unit(s) - unit(t)|²",
        "ScaleKD, arXiv 2411.06786: spatial",
        ("patch",),
    ),
    "unit_maps_without_mean": Kind(
        ".unit_maps:unit_maps_without_mean",
        "the same of maps less their means over cells",
        "ScaleKD: frequency",
        tokens=("patch",),
    ),
    "cell_similarity": Kind(
        ".similarity:cell_similarity",
        "KL of softmax(cosines of an image's cells / .105), mean over cells",
        "lightly-train, distillation v3: its local term",
        tokens=("patch",),
    ),
    "class_direction": Kind(
        ".class_direction:class_direction",
        "1 - s·c/|c| / max(|s|, |t|), c the teacher's mean of the image's class",
        "ND, arXiv 2305.17007",
        tokens=("cls",),
        needs="centers",
    ),
    "kl": Kind(
        ".kl:kl",
        "T²·KL(softmax(t / T) ‖ softmax(s / T)) of logits",
        "Hinton et al., arXiv 1503.02531",
        tokens=("cls",),
        needs="logits",
        options=("temperature",),
    ),
    "soft_ce": Kind(
        ".cross_entropy:soft_cross_entropy",
        "-T²·Σ p log softmax(s / T), p = softmax(t / T), or its K largest and the rest spread evenly",
        "TinyViT, arXiv 2207.10666",
        tokens=("cls",),
        needs="logits",
        options=("temperature", "top_k"),
    ),
    "masked_mse": Kind(
        ".masked_mse:masked_mse",
        "squared error at masked cells, mean over all of the batch's; half of the cells of half of the images are masked",
        "Proteus, arXiv 2407.10366",
        tokens=("patch",),
        needs="masked",
    ),
    "queue_similarity": Kind(
        ".similarity:queue_similarity",
        "KL of softmax(cosines to the targets of the last 8,192 images, its own batch's first / .07)",
        "lightly-train, distillation v1 and v3",
        tokens=("cls",),
        needs="queue",
    ),
}
"""By the name that documents have; their order is that of the terms in a definition."""


class Term(Model):
    """A part of the loss: one kind, of one token type."""

    token: TokenType
    """Of which tokens: `cls` (one vector an image) or `patch` (a grid of them)."""
    kind: Annotated[str, one_of(lambda: KINDS)]
    """What is measured between prediction and target (docs/recipes.md has the formulas)."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this term in the sum."""
    teachers: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """All of the student's by default."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """By which logits are divided (`kl`, `soft_ce`)."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Of the teacher's class probabilities only so many are known, the largest (`soft_ce`); None: all."""

    @model_validator(mode="after")
    def _kind_has_these(self) -> Term:
        fields, options = type(self).model_fields, ("temperature", "top_k")
        idle = [f for f in options if f not in KINDS[self.kind].options and getattr(self, f) != fields[f].default]
        if idle:
            message = f"says nothing about a term of kind {self.kind}: leave it out"
            raise ValidationError.from_exception_data("Term", [problem((idle[0],), message, getattr(self, idle[0]))])
        return self


class LossConfig(Model):
    """The distillation loss. `cosine`, `smooth_l1` and `tokens` are those of UNIC (section 3.1); `terms` stands for any."""

    cosine: Annotated[float, Field(ge=0)] = 0.5
    """Weight of 1 - cos."""
    smooth_l1: Annotated[float, Field(ge=0)] = 0.5
    """Weight of smooth-L1 with beta 1."""
    tokens: Literal["both", "cls", "patch"] = "both"
    """What is learned from the teachers."""
    standardize: Normaliser | dict[TokenType, Normaliser] = "exact"
    """`exact`: targets are (x - mean) / std with the cache's exact statistics per dimension and token type. `ema`: the
    official implementation's running mean and std, updated after every batch with a momentum that falls from 1 to .001.
    `none`: the features themselves. `phi_s`: rotated so that all dimensions have one variance, and one scale for all
    (PHI-S). `theia`: exact, but as Theia's files have it, rounded to bfloat16. `batch`: by each batch's own mean and std, as
    DUNE's code does it, which takes no parts of a batch. Or one for each token type."""
    drop_probability: Fraction = 0.5
    """Per image, each teacher but the one with the highest loss is dropped with this probability (0: no dropping)."""
    terms: Annotated[tuple[Term, ...], Field(min_length=1)] | None = None
    """Instead of `cosine`, `smooth_l1` and `tokens`: a teacher's loss is the sum of its terms by their weights. A view
    without patches is learned from by the others, as many times heavier as the teacher has token types."""
    balance: Literal["dropping", "sum", "own_data"] = "dropping"
    """How a batch's losses become one. `dropping`: the mean over the teachers that its images keep (`drop_probability`; 0:
    over all). `sum`: the sum over teachers, mean over images. `own_data`: as `dropping`, but an image keeps the teachers
    that `own` gives its dataset (DUNE)."""
    own: dict[Name, Annotated[tuple[Name, ...], Field(min_length=1)]] = {}
    """By dataset of the mixture, the teachers that its images are learned from (`balance: own_data`)."""
    grid: Literal["student", "larger"] = "student"
    """On which grid patches are compared: the student's, to which targets are resampled (bilinear, antialiased); or the
    larger one, to which the other side is resampled (bicubic)."""
    classifier: Annotated[str, Field(pattern=r"^(weights|probe:[A-Za-z0-9][A-Za-z0-9._+-]{0,99})$")] = "weights"
    """Whose logits terms that need them are about. `weights`: the classifier's in each teacher's weights file.
    `probe:BENCHMARK`: the linear probe's of each teacher that `evaluate` fitted on that benchmark."""

    @field_validator("terms")
    @classmethod
    def _each_once(cls, terms: tuple[Term, ...] | None) -> tuple[Term, ...] | None:
        seen: set[tuple[str, str, str | None]] = set()
        for term in terms or ():
            if term.token not in KINDS[term.kind].tokens:
                raise ValueError(f"{term.kind} is a loss of {' and '.join(KINDS[term.kind].tokens)} tokens")
            mine = {(term.token, term.kind, teacher) for teacher in term.teachers or (None,)}
            alike = {key[:2] for key in seen if None in (key[2], *(m[2] for m in mine)) or key in mine}
            if (term.token, term.kind) in alike:
                raise ValueError(f"{term.kind} of {term.token} twice for the same teacher")
            seen |= mine
        return terms

    @model_validator(mode="after")
    def _fields_go_together(self) -> LossConfig:
        fields = type(self).model_fields
        wrong: tuple[str, str] | None = None
        if self.terms is not None:
            given = [f for f in SHORT if getattr(self, f) != fields[f].default]
            if given:
                wrong = given[0], "give it as one of the terms, or leave out terms"
            elif self.tokens not in ("both", _choice(self.trained)):
                wrong = "tokens", "the terms say which: leave it out"
        if {"ema", "batch"} <= {self.normaliser(token) for token in self.trained}:
            wrong = "standardize", "ema and batch keep the same averages: choose one"
        fixed = {
            "class means": self.needs_classes,
            "a classifier": self.needs_logits,
            "targets in a queue": self.needs_queue,
        }
        if any(fixed.values()) and self.normaliser("cls") in MOVING:
            what = next(name for name, needed in fixed.items() if needed)
            wrong = "standardize", f"nothing moves {what}: normalise cls by exact, phi_s or none"
        if self.needs_masks and self.grid == "larger":
            wrong = "grid", "cells are masked on the student's grid (masked_mse): compare on that"
        if self.probed is not None and not self.needs_logits:
            wrong = "classifier", "no term is about logits (kl, soft_ce): leave it out"
        if self.balance != "dropping" and self.drop_probability not in (0, fields["drop_probability"].default):
            wrong = "drop_probability", f"no teacher is dropped by chance with balance: {self.balance}"
        if (self.balance == "own_data") != bool(self.own):
            wrong = "own", "goes with balance: own_data, and names each dataset's teachers"
        if wrong is not None:
            raise ValidationError.from_exception_data(
                "LossConfig", [problem((wrong[0],), wrong[1], getattr(self, wrong[0]))]
            )
        return self

    @property
    def trained(self) -> tuple[TokenType, ...]:
        """The token types that some term is of."""
        if self.terms is not None:
            return tuple(token for token in TOKENS if token in {term.token for term in self.terms})
        return TOKENS if self.tokens == "both" else (self.tokens,)

    def terms_of(self, teacher: str) -> dict[TokenType, dict[str, float]]:
        """The weights of a teacher's terms by token type and kind: its loss is the mean over token types of their sums."""
        if self.terms is None:
            return {token: {"cosine": self.cosine, "smooth_l1": self.smooth_l1} for token in self.trained}
        mine = [term for term in self.terms if term.teachers is None or teacher in term.teachers]
        tokens = [token for token in TOKENS if token in {term.token for term in mine}]
        return {
            token: {term.kind: term.weight * len(tokens) for term in mine if term.token == token} for token in tokens
        }

    def options_of(self, teacher: str, token: TokenType, kind: str) -> dict[str, float | None]:
        """The fields of a teacher's term that its kind takes."""
        mine = (
            t for t in self.terms or () if (t.token, t.kind) == (token, kind) and teacher in (t.teachers or (teacher,))
        )
        return {name: getattr(term, name) for term in mine for name in KINDS[kind].options}

    def normaliser(self, token: TokenType) -> Normaliser:
        """How the targets of a token type are normalised."""
        return self.standardize if isinstance(self.standardize, str) else self.standardize.get(token, "exact")

    @property
    def needs_classes(self) -> bool:
        """Whether some term is about the classes of the images."""
        return any(KINDS[term.kind].needs == "centers" for term in self.terms or ())

    @property
    def needs_logits(self) -> bool:
        """Whether some term is about logits."""
        return any(KINDS[term.kind].needs == "logits" for term in self.terms or ())

    @property
    def needs_masks(self) -> bool:
        """Whether the student is also shown images with masked patches."""
        return any(KINDS[term.kind].needs == "masked" for term in self.terms or ())

    @property
    def needs_queue(self) -> bool:
        """Whether some term compares with targets of the batches before."""
        return any(KINDS[term.kind].needs == "queue" for term in self.terms or ())

    @property
    def probed(self) -> str | None:
        """The benchmark whose probes give the logits."""
        return self.classifier.removeprefix("probe:") if self.classifier != "weights" else None

    @property
    def needs_whole_batches(self) -> bool:
        """Whether a part of a batch, or a process's share, would be learned from differently."""
        return "batch" in (self.normaliser(token) for token in self.trained)

    def normalised(self, teachers: Sequence[str]) -> LossConfig:
        """The one way to write this loss against these teachers: equal losses have equal digests.

        Raises:
            UserError: a teacher without a term, or terms of somebody else.
        """
        changes: dict[str, object] = {"tokens": _choice(self.trained)}
        if self.terms is not None:
            terms = _sorted(self.terms, teachers)
            whole = self.model_copy(update={"terms": terms})
            idle = [teacher for teacher in teachers if not whole.terms_of(teacher)]
            if idle:
                raise UserError(
                    f"No term of the loss is about teacher {idle[0]}.", "Add one, or take it out of teachers."
                )
            patches = {t: whole.terms_of(t).get("patch", {}) for t in teachers}
            blind = [t for t, kinds in patches.items() if kinds and all(KINDS[k].needs == "masked" for k in kinds)]
            if blind:
                raise UserError(
                    f"Patches of teacher {blind[0]} are learned of masked images alone, whose heads do not leave with a student.",
                    "Add another term of its patches, for instance mse.",
                )
            short = _short(whole)
            changes |= {"terms": terms} if short is None else {"terms": None, **short}
        names = {token: self.normaliser(token) for token in self.trained}
        changes["standardize"] = names[self.trained[0]] if len(set(names.values())) == 1 else names
        if self.balance != "dropping":
            changes["drop_probability"] = type(self).model_fields["drop_probability"].default
        own = {dataset: tuple(t for t in teachers if t in mine) for dataset, mine in sorted(self.own.items())}
        if any(len(own[dataset]) < len(mine) for dataset, mine in self.own.items()):
            raise UserError(
                "loss.own names a teacher that the student does not have.", f"It has {', '.join(teachers)}."
            )
        return self.model_copy(update=changes | {"own": own})


def _choice(tokens: Sequence[TokenType]) -> Literal["both", "cls", "patch"]:
    return tokens[0] if len(tokens) == 1 else "both"


def _sorted(terms: Sequence[Term], teachers: Sequence[str]) -> tuple[Term, ...]:
    """Terms in the order of token types, kinds and teachers, which are named only where not all are meant."""
    found = []
    for term in terms:
        strange = [name for name in term.teachers or () if name not in teachers]
        if strange:
            raise UserError(
                f"A term of the loss is about teacher {strange[0]}, whom the student does not have.",
                f"It has {', '.join(teachers)}.",
            )
        mine = tuple(name for name in teachers if term.teachers is None or name in term.teachers)
        found.append(term.model_copy(update={"teachers": None if len(mine) == len(teachers) else mine}))
    kinds = list(KINDS)
    return tuple(sorted(found, key=lambda t: (TOKENS.index(t.token), kinds.index(t.kind), t.teachers or ())))


def _short(loss: LossConfig) -> dict[str, float] | None:
    """`cosine` and `smooth_l1` of a loss that these two can say; None: they cannot."""
    assert loss.terms is not None
    weights = list(loss.terms_of("").values())
    if any(term.teachers is not None or term.kind not in SHORT for term in loss.terms) or weights[0] != weights[-1]:
        return None
    return {kind: weights[0].get(kind, 0.0) for kind in SHORT}
