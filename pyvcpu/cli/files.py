"""The files that a machine is given beside its image: initrds and disks."""

from __future__ import annotations

import os
import stat

from ..boot.multiboot import split_modules
from ..devices.disk_file import SECTOR, DiskFile
from ..devices.virtio_blk import VirtioBlk
from ..errors import ConfigError
from ..machine import read_image
from . import say

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Sequence


def read_initrd(text: str | None, limit: int) -> list[tuple[str, bytes]]:
    """Read the files that --initrd names; return the command line and the content of each.

    `text` is a file, or for Multiboot a list as QEMU takes it: `FILE[ ARGUMENTS],...`, a comma in a name doubled. Raise
    ConfigError for a file that cannot be read.
    """
    if text is None:
        return []
    modules = [(text, text)] if os.path.exists(text) else split_modules(text)
    if not modules:
        raise ConfigError(f"--initrd takes a file, not {text!r}")
    return [(line, _read(path, limit)) for path, line in modules]


def _read(path: str, limit: int) -> bytes:
    try:
        return read_image(path, limit)
    except OSError as error:
        raise ConfigError(f"--initrd {path}: {error.strerror}") from None


FW_CFG_LIMIT = 64 << 20  # bytes of a file: they are copied into this process


def read_fw_cfg(text: str) -> tuple[str, bytes]:
    """Return name and content as `name=NAME,file=F` or `name=NAME,string=S` say; a comma in a value is doubled."""
    fields: dict[str, str] = {}
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = part.partition("=")
        key = "name" if not equals and not fields else key  # QEMU: the first may be the name alone
        if key not in ("name", "file", "string") or key in fields:
            raise ConfigError(f"--fw-cfg takes name=NAME,file=F or name=NAME,string=S, not {text!r}")
        fields[key] = (value if equals else part).replace("\0", ",")
    if not fields.get("name") or ("file" in fields) == ("string" in fields):
        raise ConfigError(f"--fw-cfg takes name=NAME,file=F or name=NAME,string=S, not {text!r}")
    if "string" in fields:
        return fields["name"], os.fsencode(fields["string"])
    try:
        content = read_image(fields["file"], FW_CFG_LIMIT)
    except OSError as error:
        raise ConfigError(f"--fw-cfg {fields['file']}: {error.strerror}") from None
    if len(content) > FW_CFG_LIMIT:
        raise ConfigError(f"--fw-cfg {fields['file']}: a file must not be larger than {FW_CFG_LIMIT >> 20} MiB")
    return fields["name"], content


class Disks:
    """The disks of `--disk FILE[,ro]`, open from creation to close(), and the image before them if that is a disk.

    `booted`: it is.
    """

    def __init__(self, texts: Sequence[str], image: str | None = None) -> None:
        self.devices: list[VirtioBlk] = []
        self._fds: list[int] = []
        self.files: list[DiskFile] = []
        self.booted = image is not None
        try:
            if image is not None:
                self._open_file(image, image, readonly=not os.access(image, os.W_OK))
            for text in texts:
                self._open(text)
        except BaseException:
            self.close()
            raise

    def _open(self, text: str) -> None:
        path, comma, option = text.rpartition(",") if not os.path.exists(text) and "," in text else (text, "", "")
        if not path or (comma and option not in ("ro", "rw")):
            raise ConfigError(f"--disk takes FILE or FILE,ro, not {text!r}")
        self._open_file(path, f"--disk {path}", readonly=option == "ro")

    def _open_file(self, path: str, what: str, *, readonly: bool) -> None:
        try:
            if not is_disk(path):
                raise ConfigError(f"{what}: a disk is a file or a block device, and this is neither")
            fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            hint = "; add ,ro to only read it" if isinstance(error, PermissionError) and not readonly else ""
            raise ConfigError(f"{what}: {error.strerror}{hint}") from None
        self._fds.append(fd)
        disk = DiskFile(fd, path, readonly=readonly, warn=say)
        self.files.append(disk)
        self.devices.append(VirtioBlk(disk, f"disk{len(self.devices)}", warn=say))

    def close(self) -> None:
        """Close the files; closing again does nothing."""
        while self.files:
            self.files.pop().close()
        while self._fds:
            os.close(self._fds.pop())


def is_disk(path: str) -> bool:
    """Tell whether a path leads to a file or a block device. Raise OSError."""
    kind = os.stat(path).st_mode
    return stat.S_ISREG(kind) or stat.S_ISBLK(kind)


def boots_as_disk(path: str, image: bytes, format: str | None) -> bool:
    """Tell whether an image is a disk that its first sector boots from: it has more than that, and whole sectors.

    Of others, all that INT 13h can read is in memory.
    """
    from ..boot import detect

    try:
        if format not in (None, "bootsector") or not is_disk(path):
            return False
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
    except OSError:
        return False
    return size > SECTOR and size % SECTOR == 0 and (format is not None or detect(image) == "bootsector")
