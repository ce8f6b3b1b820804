"""View recipes: every parameter that decides what a view of a sample looks like."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unic_pipe.schemas.base import Model
from unic_pipe.schemas.errors import UserError

Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class Recipe(Model):
    """Parameters of a view. The defaults are the `unic` recipe (UNIC, arXiv 2408.05088, section 4)."""

    crop: Literal["random", "center"] = "random"
    """`random`: RandomResizedCrop. `center`: resize the short side to size / `center_fraction`, crop the centre."""
    scale: Range = (0.08, 1.0)
    """Range of the crop's area as a fraction of the image's."""
    ratio: Range = (3 / 4, 4 / 3)
    """Range of the crop's width / height, drawn log-uniformly."""
    center_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the centre crop over the short side of the resized image."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """ColorJitter strengths: brightness, contrast, saturation, hue."""
    jitter_probability: Probability = 0.8
    """Probability of ColorJitter."""
    grayscale: Probability = 0.2
    """Probability of a view without colours."""
    blur_probability: Probability = 0.2
    """Probability of a Gaussian blur."""
    blur_kernel: Annotated[int, Field(ge=1, le=1_023)] = 9
    """Side of the Gaussian kernel in reference pixels (odd)."""
    blur_sigma: Range = (0.1, 5.0)
    """Standard deviation of the blur in reference pixels."""
    solarize_probability: Probability = 0.2
    """Probability of inverted highlights."""
    solarize_threshold: Probability = 0.5
    """Pixels at or above this fraction of 255 are inverted."""
    reference_size: Annotated[int, Field(ge=8, le=16_384)] = 224
    """The input size for which blur is stated; other sizes blur in proportion."""

    @property
    def photometric(self) -> bool:
        """Whether a view may be changed by more than crop, resize and flip."""
        chances = (self.jitter_probability, self.grayscale, self.blur_probability, self.solarize_probability)
        return max(chances) > 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Recipe:
        bad = []
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            bad.append(f"scale: {self.scale} is not a rising range between 0 and 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            bad.append(f"ratio: {self.ratio} is not a rising range above 0")
        if min(self.jitter) < 0:
            bad.append(f"jitter: {self.jitter} has a negative strength")
        if self.jitter[3] > 0.5:
            bad.append(f"jitter: hue {self.jitter[3]} is above 0.5, half the colour circle")
        if self.blur_kernel % 2 == 0:
            bad.append(f"blur_kernel: {self.blur_kernel} is even; choose {self.blur_kernel + 1}")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1]:
            bad.append(f"blur_sigma: {self.blur_sigma} is not a rising range from 0 up")
        if bad:
            raise ValueError("; ".join(bad))
        return self


UNIC = Recipe()
GENTLE = Recipe(
    scale=(0.8, 1.0),
    flip=0.0,
    jitter_probability=0.0,
    grayscale=0.0,
    blur_probability=0.0,
    solarize_probability=0.0,
)
CENTER = Recipe(
    crop="center",
    flip=0.0,
    jitter_probability=0.0,
    grayscale=0.0,
    blur_probability=0.0,
    solarize_probability=0.0,
)
RECIPES: dict[str, Recipe] = {"unic": UNIC, "gentle": GENTLE, "center": CENTER}


def recipe_named(recipe: str | Recipe) -> Recipe:
    """The recipe of that name, or the given one.

    Raises:
        UserError: no recipe has this name; the message lists those that exist.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise UserError(f"No view recipe is named {recipe!r}.", f"Choose one of: {', '.join(RECIPES)}.")
    return RECIPES[recipe]
