"""Loaders: pure functions from the bytes of an image to a Plan. They raise ImageError and nothing else."""

from __future__ import annotations

from ..errors import ConfigError, ImageError
from . import bootsector, flat
from .plan import Plan as Plan
from .plan import Target as Target

FORMATS = {"bootsector": bootsector.plan, "flat": flat.plan}


def detect(image: bytes) -> str:
    """Return the name of the image's format; what is of no other format is flat."""
    return "bootsector" if bootsector.matches(image) else "flat"


def plan(image: bytes, target: Target, format: str | None = None) -> Plan:
    """Plan the boot of `image` on `target`; `format` overrides what detect() says."""
    if not image:
        raise ImageError("the image is empty")
    # An address or a mode is said only of flat images: an accidental signature must not turn such a one into another.
    said = any(value is not None for value in (target.mode, target.load, target.entry))
    name = format or ("flat" if said else detect(image))
    loader = FORMATS.get(name)
    if loader is None:
        raise ConfigError(f"the format must be one of {', '.join(sorted(FORMATS))}, not {name!r}")
    return loader(image, target)
