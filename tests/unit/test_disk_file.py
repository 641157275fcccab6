"""Disks are locked: against QEMU's programs as they lock them, by any name, and where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvcpu.devices import disk_file
from pyvcpu.devices.disk_file import READS, SECTOR, WRITES, DiskFile, loop_file
from pyvcpu.errors import ConfigError
from tests.threads import until

SIZE = 64 * SECTOR
RW, RO = False, True


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def opened() -> Iterator[Callable[..., DiskFile]]:
    """Give a function that opens a disk, which is closed at the end."""
    disks: list[tuple[int, DiskFile]] = []

    def open_disk(path: str | Path, readonly: bool = False, warn: Callable[[str], object] | None = None) -> DiskFile:
        fd = os.open(path, os.O_RDONLY if readonly else os.O_RDWR)
        try:
            disks.append((fd, DiskFile(fd, str(path), readonly=readonly, warn=warn)))
        except BaseException:
            os.close(fd)
            raise
        return disks[-1][1]

    yield open_disk
    for fd, disk in disks:
        disk.close()
        disk.close()
        os.close(fd)


def test_the_bytes_that_qemu_locks() -> None:
    assert READS == (100, 201)
    assert WRITES == (100, 101, 201)


@pytest.mark.parametrize(
    ("first", "second", "refused"), [(RW, RW, True), (RW, RO, True), (RO, RW, True), (RO, RO, False)]
)
@pytest.mark.parametrize("name", ["same", "symbolic link", "hard link"])
def test_one_writer_or_many_readers_by_any_name(
    image: Path, opened: Callable[..., DiskFile], first: bool, second: bool, refused: bool, name: str
) -> None:
    other = image.with_name("other.img")
    if name == "symbolic link":
        other.symlink_to(image)
    elif name == "hard link":
        other.hardlink_to(image)
    else:
        other = image
    opened(image, first)
    if not refused:
        opened(other, second)
        return
    with pytest.raises(ConfigError, match="is in use as a disk already"):
        opened(other, second)


def test_a_disk_can_be_opened_again_once_it_is_closed(image: Path) -> None:
    for _ in range(3):
        fd = os.open(image, os.O_RDWR)
        disk = DiskFile(fd, "disk")
        os.close(fd)  # and the object may live on
        assert disk.size == SIZE


# QEMU's programs


@contextmanager
def qemu_io(image: Path, *options: str) -> Iterator[None]:
    """Have qemu-io keep the image open, as a virtual machine does."""
    line = ["qemu-io", "-f", "raw", *options, str(image)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"length\n")
        process.stdin.flush()
        while b"32 KiB" not in (said := process.stdout.readline()):
            assert said, "qemu-io has not opened the image"
        yield
        process.stdin.close()
        process.wait(30)


def qemu_fails(*line: str) -> bytes:
    done = subprocess.run(line, capture_output=True, check=False, timeout=30)
    return b"" if done.returncode == 0 else done.stderr + done.stdout


needs_qemu = pytest.mark.skipif(
    not shutil.which("qemu-io") or not shutil.which("qemu-img"), reason="no qemu-utils here"
)


@contextmanager
def machine(image: Path, readonly: bool) -> Iterator[None]:
    """Have QEMU keep the image as the disk of a machine that does not run."""
    inode = f":{image.stat().st_ino} "
    drive = f"file={image},format=raw,if=virtio,readonly={'on' if readonly else 'off'}"
    line = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none", "-monitor", "none", "-serial", "none"]
    with subprocess.Popen([*line, "-drive", drive], stderr=subprocess.DEVNULL) as process:
        until(lambda: f"{inode}201 201" in Path("/proc/locks").read_text())
        yield
        process.kill()


@needs_qemu
@pytest.mark.parametrize(("theirs", "ours", "refused"), [(RW, RW, True), (RW, RO, True), (RO, RW, False)])
def test_what_qemu_io_has_open_is_seen(
    image: Path, opened: Callable[..., DiskFile], theirs: bool, ours: bool, refused: bool
) -> None:
    """It lets others write, unlike a machine."""
    with qemu_io(image, *(["-r"] if theirs else [])):
        if refused:
            with pytest.raises(ConfigError, match="is in use as a disk already"):
                opened(image, ours)
        else:
            opened(image, ours)
    if refused:
        opened(image, ours)


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no QEMU here")
@pytest.mark.parametrize("theirs", [RW, RO])
def test_what_a_machine_of_qemu_has_is_seen(image: Path, opened: Callable[..., DiskFile], theirs: bool) -> None:
    with machine(image, theirs):
        with pytest.raises(ConfigError, match="is in use as a disk already"):
            opened(image, RW)
        if theirs is RO:
            opened(image, RO)
            return
        with pytest.raises(ConfigError, match="is in use as a disk already"):
            opened(image, RO)


@needs_qemu
def test_qemu_sees_what_we_write(image: Path, opened: Callable[..., DiskFile]) -> None:
    opened(image)
    assert b"lock" in qemu_fails("qemu-img", "resize", "-f", "raw", str(image), "1M")
    assert b"lock" in qemu_fails("qemu-io", "-f", "raw", "-c", "write 0 512", str(image))


@needs_qemu
def test_qemu_sees_what_we_read(image: Path, opened: Callable[..., DiskFile]) -> None:
    opened(image, RO)
    assert qemu_fails("qemu-img", "info", str(image)) == b""
    assert b'Failed to get "write" lock' in qemu_fails("qemu-io", "-f", "raw", "-c", "write 0 512", str(image))


# Without locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("readonly", [RW, RO])
def test_a_file_system_without_locks_is_a_warning(
    image: Path, opened: Callable[..., DiskFile], monkeypatch: pytest.MonkeyPatch, number: int, readonly: bool
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    warnings: list[str] = []
    assert opened(image, readonly, warnings.append).size == SIZE
    assert warnings == [
        f"{image} cannot be locked here ({os.strerror(number)}): see to it yourself that no other program writes it"
    ]
    link = image.with_name("link.img")
    link.hardlink_to(image)
    with pytest.raises(ConfigError, match="in use"):  # what this process has, it knows without
        opened(link, RW)


def test_another_error_of_a_lock_is_said(
    image: Path, opened: Callable[..., DiskFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(ConfigError, match=r"disk\.img cannot be locked: Input/output error"):
        opened(image)


# Identity


def test_the_identity_tells_disks_apart(image: Path, opened: Callable[..., DiskFile]) -> None:
    status = image.stat()
    disk = opened(image)
    assert disk.identity() == {
        "size": SIZE,
        "device": status.st_dev,
        "inode": status.st_ino,
        "modified": status.st_mtime_ns,
    }
    before = disk.identity()
    os.utime(image, ns=(0, 1))
    assert disk.identity() == before | {"modified": 1}


# Block devices


def test_the_file_behind_a_loop_device(tmp_path: Path) -> None:
    """In sysfs it is beside the device, or above it for a partition."""
    disk = tmp_path / "block" / "loop3"
    part = disk / "loop3p1"
    (disk / "loop").mkdir(parents=True)
    part.mkdir()
    (disk / "loop" / "backing_file").write_bytes(b"/images/a b.img\n")
    numbers = tmp_path / "dev" / "block"
    numbers.mkdir(parents=True)
    (numbers / "7:3").symlink_to(disk)
    (numbers / "259:1").symlink_to(part)
    (numbers / "8:0").symlink_to(tmp_path)
    for device, expected in ((os.makedev(7, 3), "/images/a b.img"), (os.makedev(259, 1), "/images/a b.img")):
        assert loop_file(device, str(tmp_path)) == expected
    assert loop_file(os.makedev(8, 0), str(tmp_path)) is None
    assert loop_file(os.makedev(9, 9), str(tmp_path)) is None


@pytest.fixture
def loop_device(image: Path) -> Iterator[str]:
    """Give a loop device over the image, where the host lets one be made."""
    try:
        done = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        pytest.skip("no loop devices here")
    device = done.stdout.strip()
    if not os.path.exists(device):
        subprocess.run(["losetup", "-d", device], check=False)
        pytest.skip("no loop devices here")
    yield device
    subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_loop_device_and_its_file_are_one_disk(
    image: Path, loop_device: str, opened: Callable[..., DiskFile], turn: int
) -> None:
    first, second = (str(image), loop_device)[::turn]
    disk = opened(first)
    assert disk.size == SIZE
    with pytest.raises(ConfigError, match="in use"):
        opened(second)
    with pytest.raises(ConfigError, match="in use"):
        opened(second, RO)


@needs_qemu
def test_qemu_sees_the_file_behind_our_loop_device(
    image: Path, loop_device: str, opened: Callable[..., DiskFile]
) -> None:
    opened(loop_device)
    assert b"lock" in qemu_fails("qemu-io", "-f", "raw", "-c", "read 0 512", str(image))


def test_a_block_device_is_read_by_many_and_written_by_one(loop_device: str, opened: Callable[..., DiskFile]) -> None:
    opened(loop_device, RO)
    opened(loop_device, RO)
    node = str(Path(loop_device).resolve())
    with pytest.raises(ConfigError, match="in use"):
        opened(node, RW)


def test_a_block_device_that_the_host_uses_is_refused(
    loop_device: str, opened: Callable[..., DiskFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount claims the device as O_EXCL does."""
    claim = os.open(loop_device, os.O_RDWR | os.O_EXCL)
    for readonly in (RW, RO):
        with pytest.raises(ConfigError, match="in use by this host; is it mounted"):
            opened(loop_device, readonly)
    os.close(claim)
    opened(loop_device)


def test_nothing_stays_open(image: Path, loop_device: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        fd = os.open(loop_device, os.O_RDWR)
        disk = DiskFile(fd, "loop")
        other = os.open(loop_device, os.O_RDWR)
        with pytest.raises(ConfigError):
            DiskFile(other, "again")
        os.close(other)
        disk.close()
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
    assert disk not in disk_file._open
