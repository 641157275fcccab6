"""The files of --disk and --initrd, and what users may get wrong about them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvcpu import ConfigError
from pyvcpu.cli.files import Disks, read_initrd

LIMIT = 1 << 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one of each kind of file."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("disk", 4096), ("a,b", 512), ("odd", 1000), ("empty", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["missing"], "--disk missing: No such file or directory"),
        (["dangling,ro"], "--disk dangling: No such file or directory"),
        (["disk/more"], "--disk disk/more: Not a directory"),
        (["folder"], "--disk folder: a disk is a file or a block device, and this is neither"),
        (["folder,ro"], "and this is neither"),
        (["pipe"], "and this is neither"),
        (["pipe,ro"], "and this is neither"),
        (["/dev/null"], "and this is neither"),
        (["odd"], "whole sectors of 512 bytes, and at least one; odd has 1000 bytes"),
        (["empty"], "empty has 0 bytes"),
        (["disk,rx"], "--disk takes FILE or FILE,ro, not 'disk,rx'"),
        (["disk,"], "--disk takes FILE or FILE,ro, not 'disk,'"),
        ([""], "--disk takes FILE or FILE,ro, not ''"),
        ([",ro"], "--disk takes FILE or FILE,ro, not ',ro'"),
        (["disk", "disk"], "disk is in use as a disk already; it can be used more than once with ,ro"),
        (["disk,ro", "disk"], "in use as a disk already"),
    ],
)
def test_disks_that_cannot_be_had(folder: Path, texts: list[str], words: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        Disks(texts)
    assert words in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_one_may_only_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if not root, who may do everything."""
    real = os.open

    def open_for_reading(path: str, flags: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags)

    monkeypatch.setattr(os, "open", open_for_reading)
    with pytest.raises(ConfigError, match=r"^--disk disk: Permission denied; add ,ro to only read it$"):
        Disks(["disk"])
    Disks(["disk,ro"]).close()


def test_disks_are_numbered_and_closed(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disks = Disks(["disk,rw", "a,b,ro", "a,b,ro"])
    assert [disk.name for disk in disks.devices] == ["disk disk0", "disk disk1", "disk disk2"]
    disks.close()
    disks.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("missing", "--initrd missing: No such file or directory"),
        ("folder", "--initrd folder: Is a directory"),
        ("disk,missing x=1", "--initrd missing: No such file or directory"),
        ("", "--initrd takes a file, not ''"),
        (",", "--initrd takes a file, not ','"),
    ],
)
def test_initrds_that_cannot_be_had(folder: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_initrd(text, LIMIT)
    assert str(caught.value) == words


def test_initrds(folder: Path) -> None:
    assert read_initrd(None, LIMIT) == []
    assert read_initrd("disk x=1,empty,odd", LIMIT) == [
        ("disk x=1", bytes(4096)),
        ("empty", b""),
        ("odd", bytes(1000)),
    ]
    assert read_initrd("a,b", LIMIT) == [("a,b", bytes(512))], "a file's name goes before a list"


def test_of_an_initrd_too_big_for_the_guest_no_more_is_read_than_shows_it(folder: Path) -> None:
    os.truncate(folder / "disk", 1 << 30)
    [(_, data)] = read_initrd("disk", LIMIT)
    assert LIMIT < len(data) <= 2 * LIMIT + (1 << 20)
