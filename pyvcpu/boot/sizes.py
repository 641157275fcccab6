"""How much memory an image wants, for those who have not said how much their guest has. A pure function."""

from __future__ import annotations

from ..errors import ImageError
from ..memory import HOLE
from . import detect, unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Sequence

    from .plan import Span

MIB = 1 << 20
LEAST, STEP = 64 * MIB, 64 * MIB
SLACK = 48 * MIB  # what a kernel takes for itself and its first processes
UNPACKED_MOST = 1 << 30
GROWTH = 4  # of what is compressed: zstd and xz make a quarter or a fifth of an initrd
LOOK = 16 * MIB  # how far into an initrd the end of its first archive is looked for

CPIO, CPIO_END = (b"070701", b"070702", b"070707"), b"TRAILER!!!"
COMPRESSED = (
    b"\x1f\x8b",
    b"\xfd7zXZ\0",
    b"BZh",
    b"\x5d\0\0",
    b"\x28\xb5\x2f\xfd",
    b"\x02\x21\x4c\x18",
    b"\x04\x22\x4d\x18",
    b"\x89LZO",
)


def wanted_memory(image: bytes, initrd: Sequence[tuple[str, bytes]] = (), format: str | None = None) -> int:
    """Return how many bytes of RAM a guest should have that boots `image`: a multiple of 64 MiB.

    It holds the kernel until it has a memory map of its own, the initrd, what that unpacks to, and 48 MiB for the
    kernel's work. 64 MiB are enough for images that do not say more, and for those that cannot be booted. What an image
    wants above 4 GiB is left out: a loader says when it is missing.
    """
    try:
        needed = _end(image, format)
    except ImageError:
        return LEAST
    if needed == 0:
        return LEAST
    needed += sum(len(data) + _content(data) for _, data in initrd) + SLACK
    return max(LEAST, -(-needed // STEP) * STEP)


def _end(image: bytes, format: str | None) -> int:
    """Return where the memory ends that the image takes, 0 when that is no matter."""
    if format in ("bootsector", "flat"):
        return 0
    image = unpacked(image, UNPACKED_MOST, format is not None)
    name = format or detect(image)
    if name in ("linux", "linux16"):
        from .linux_header import LOAD, Kernel

        kernel = Kernel(image)
        return LOAD + len(kernel.code) if name == "linux16" or kernel.mode == "real" else kernel.end
    return max((end for _, end in _spans(image, name) if end <= HOLE), default=0)


def _spans(image: bytes, name: str) -> list[Span]:
    if name == "multiboot":
        from .multiboot import load

        return load(image)[1]
    if name == "multiboot2":
        from .multiboot2 import load as load2
        from .multiboot2_header import Header

        return load2(image, Header(image))[1]
    if name in ("elf", "pvh"):
        from .elf_image import Elf

        return Elf(image).spans
    return []


def _content(initrd: bytes) -> int:
    """Return about how much memory the content of an initrd takes: archives; the last one may be compressed."""
    rest = initrd
    if initrd.startswith(CPIO):  # microcode, often, with another archive behind
        end = initrd.find(CPIO_END, 0, LOOK)
        if end < 0:
            return len(initrd)
        rest = initrd[end + len(CPIO_END) :].lstrip(b"\0")
    growth = GROWTH if rest.startswith(COMPRESSED) else 1
    return len(initrd) - len(rest) + growth * len(rest)
