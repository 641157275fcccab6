"""Loaders: pure functions from the bytes of an image to a Plan. They raise ImageError and nothing else."""

from __future__ import annotations

from ..errors import ConfigError, ImageError
from .plan import CutShort
from .plan import Plan as Plan
from .plan import Target as Target

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

FORMATS = ("bootsector", "elf", "flat", "linux", "linux16", "multiboot", "multiboot2", "pvh")
BARE = ("bootsector", "elf", "flat")  # whose guests are handed nothing beside their image
PACKED = (b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"BZh", b"\x5d\0\0")  # unpack.MAGICS, for a first look


def detect(image: bytes) -> str:
    """Return the name of the image's format; what is of no other format is flat."""
    if image[0x202:0x206] == b"HdrS":
        return "linux"
    is_sector = image[510:512] == b"\x55\xaa"
    if is_sector:
        from . import linux_header

        if linux_header.matches_without_header(image):
            return "linux16"
        from . import bootsector

        if bootsector.is_partitioned(image):
            return "bootsector"
    if image.find(b"\x02\xb0\xad\x1b", 0, 8192) >= 0:  # the number alone may be chance: look closer
        from . import multiboot

        if multiboot.matches(image):
            return "multiboot"
    if image.find(b"\xd6\x50\x52\xe8", 0, 32768) >= 0:
        from . import multiboot2

        if multiboot2.matches(image):
            return "multiboot2"
    if image.startswith(b"\x7fELF"):
        return "elf"
    return "bootsector" if is_sector else "flat"


def plan(image: bytes, target: Target, format: str | None = None) -> Plan:
    """Plan the boot of `image` on `target`; `format` overrides what detect() says.

    Compressed kernels are unpacked, unless they are said to be flat or a boot sector. Files that are known to be
    something else are refused, unless the format is given.
    """
    if not image:
        raise ImageError("the image is empty")
    # An address or a mode is said only of flat images: an accidental signature must not turn such a one into another.
    said = any(value is not None for value in (target.mode, target.load, target.entry))
    name = format or ("flat" if said else None)
    if name not in (None, *FORMATS):
        raise ConfigError(f"the format must be one of {', '.join(FORMATS)}, not {name!r}")
    content = image
    try:
        if name not in ("bootsector", "flat") and image.startswith(PACKED):
            image = unpacked(image, target.memory, name is not None)
        if name is None:
            name = detect(image)
            _check_native(image, name)
            if name == "bootsector" and content is not image:
                raise ImageError("this is a disk image, compressed; unpack it: its boot sector wants the rest of it")
        made = _loader(name)(image, target)
    except CutShort as error:
        if len(image) <= target.memory:
            raise
        raise ImageError("the image is larger than the guest's RAM; give the guest more memory") from error
    _check_extras(made, target)
    return made


def unpacked(image: bytes, memory: int, is_known: bool = False) -> bytes:
    """Return what a compressed image holds, up to `memory` bytes; other images as they are.

    Refuse a content that is known to be something else than a kernel, unless the format is known.
    """
    from .unpack import Unpacker, is_packed

    if not is_packed(image):
        return image
    packed = Unpacker(image, memory)
    if not is_known:
        head = packed.head()
        _check_native(head, detect(head))
    return packed.all()


def _check_native(image: bytes, name: str) -> None:
    """Refuse what has no header of a protocol and is known to be something else."""
    if name in ("bootsector", "flat"):
        from . import foreign

        foreign.refuse(image)


def _check_extras(made: Plan, target: Target) -> None:
    if made.format in BARE and (target.initrd or target.append):
        raise ImageError(
            "an initrd or a command line can be given to Linux, Multiboot and PVH images only; this one is taken"
            f" for {made.format}"
        )
    if target.dtb and made.format != "linux":
        raise ImageError(f"a device tree can be given to Linux images only; this one is taken for {made.format}")


def _loader(name: str) -> Callable[[bytes, Target], Plan]:
    """Import the one loader that is needed."""
    if name == "flat":
        from .flat import plan
    elif name == "bootsector":
        from .bootsector import plan
    elif name == "linux":
        from .linux import plan
    elif name == "linux16":
        from .linux16 import plan
    elif name == "multiboot":
        from .multiboot import plan
    elif name == "multiboot2":
        from .multiboot2 import plan
    elif name == "elf":
        from .elf import plan
    else:
        from .pvh import plan
    return plan
