"""Loaders: pure functions from the bytes of an image to a Plan. They raise ImageError and nothing else."""

from __future__ import annotations

from ..errors import ConfigError, ImageError
from .plan import Plan as Plan
from .plan import Target as Target

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

FORMATS = ("bootsector", "elf", "flat", "linux", "multiboot", "pvh")
BARE = ("bootsector", "elf", "flat")  # whose guests are handed nothing beside their image


def detect(image: bytes) -> str:
    """Return the name of the image's format; what is of no other format is flat."""
    if image[0x202:0x206] == b"HdrS":
        return "linux"
    if image.find(b"\x02\xb0\xad\x1b", 0, 8192) >= 0:  # the number alone may be chance: look closer
        from . import multiboot

        if multiboot.matches(image):
            return "multiboot"
    if image.startswith(b"\x7fELF"):
        return "elf"
    return "bootsector" if image[510:512] == b"\x55\xaa" else "flat"


def plan(image: bytes, target: Target, format: str | None = None) -> Plan:
    """Plan the boot of `image` on `target`; `format` overrides what detect() says."""
    if not image:
        raise ImageError("the image is empty")
    # An address or a mode is said only of flat images: an accidental signature must not turn such a one into another.
    said = any(value is not None for value in (target.mode, target.load, target.entry))
    name = format or ("flat" if said else detect(image))
    if name not in FORMATS:
        raise ConfigError(f"the format must be one of {', '.join(FORMATS)}, not {name!r}")
    made = _loader(name)(image, target)
    if made.format in BARE and (target.initrd or target.append):
        raise ImageError(
            "an initrd or a command line can be given to Linux, Multiboot and PVH images only; this one is taken"
            f" for {made.format}"
        )
    return made


def _loader(name: str) -> Callable[[bytes, Target], Plan]:
    """Import the one loader that is needed."""
    if name == "flat":
        from .flat import plan
    elif name == "bootsector":
        from .bootsector import plan
    elif name == "linux":
        from .linux import plan
    elif name == "multiboot":
        from .multiboot import plan
    elif name == "elf":
        from .elf import plan
    else:
        from .pvh import plan
    return plan
