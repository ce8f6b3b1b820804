"""Licences of weights: what kind of terms each has, and what those of several teachers make of their student's.

What is not listed here is not judged: it counts as unknown until somebody reads it and adds a line.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Terms = Literal["free", "conditions", "not commercial", "unknown"]
UNKNOWN = "unknown"

MEANING: dict[Terms, str] = {
    "free": "commercial use is allowed; its notices go along",
    "conditions": "commercial use is allowed on its maker's conditions, which may bind what is made from the weights: read it",
    "not commercial": "for research and other use that is not commercial, alone",
    "unknown": "what it allows is not known to unic-pipe: ask whoever made the weights",
}
"""What terms mean for whoever uses weights that are under them, or that were made from such."""


class Licence(NamedTuple):
    """A licence as it is written here, its terms, and what the Hugging Face hub calls it."""

    name: str
    terms: Terms
    hub: str


LICENCES = (
    Licence("MIT", "free", "mit"),
    Licence("BSD-3-Clause", "free", "bsd-3-clause"),
    Licence("Apache-2.0", "free", "apache-2.0"),
    Licence("CC-BY-4.0", "free", "cc-by-4.0"),
    Licence("NVIDIA Open Model", "conditions", "nvidia-open-model-license"),
    Licence("DINOv3 License", "conditions", "dinov3-license"),
    Licence("FAIR Research License", "not commercial", "fair-noncommercial-research-license"),
    Licence("CC-BY-NC-4.0", "not commercial", "cc-by-nc-4.0"),
)
"""The more restrictive, the later."""
_BY_NAME = {name.lower(): licence for licence in LICENCES for name in (licence.name, licence.hub)}


def licence_named(name: str) -> Licence:
    """A licence by its name here, in timm or on the hub; one of unknown terms where it is not listed."""
    return _BY_NAME.get(name.lower(), Licence(name, "unknown", "other"))


def derived_licence(names: Iterable[str]) -> str:
    """What a student is under whose teachers and start are under these: the most restrictive one.

    Of licences with conditions all are named, the most restrictive first, because none of them covers another one's. One
    that is unknown, or none at all, makes it unknown.
    """
    found = {licence_named(name) for name in names}
    if not found or any(licence.terms == "unknown" for licence in found):
        return UNKNOWN
    ordered = sorted(found, key=LICENCES.index, reverse=True)
    bound = [licence.name for licence in ordered if licence.terms != "free"]
    return " AND ".join(bound) or ordered[0].name


def hub_licence(name: str) -> dict[str, str]:
    """The fields of a model card's head that say a licence which `derived_licence` gave or a folder states."""
    licence = licence_named(name)
    if name.lower() == UNKNOWN or licence.hub == licence.name.lower():
        return {"license": licence.hub if licence.terms != "unknown" else UNKNOWN}
    parts = [licence_named(part).hub if licence_named(part).hub != "other" else part for part in name.split(" AND ")]
    return {"license": "other", "license_name": "-and-".join(part.lower().replace(" ", "-") for part in parts)}
