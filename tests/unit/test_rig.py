"""The rig's own parts that need no QEMU: the end of a command's output, and the archive that its kernel unpacks."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tools.rig import __main__ as rig
from tools.rig.cpio import Archive
from tools.rig.run import STATUS_DIED, STATUS_TIMEOUT, Stream, skip_in_checkout

TOKEN = b"0123456789abcdef"


@pytest.mark.parametrize("said", [b"", b"done\n", b"no newline", b"\0\r\n\xff", TOKEN[:7], b"0123" + TOKEN[:15]])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_last_line_is_the_status_and_the_rest_is_handed_on(said: bytes, size: int) -> None:
    target = io.BytesIO()
    stream = Stream(TOKEN, target)
    sent = said + TOKEN + b"137\n"
    for start in range(0, len(sent), size):
        assert stream.status is None
        stream.feed(sent[start : start + size])
    assert (target.getvalue(), stream.status) == (said, 137)


def test_what_cannot_be_the_last_line_is_handed_on_at_once() -> None:
    target = io.BytesIO()
    stream = Stream(TOKEN, target)
    stream.feed(b"one" + TOKEN[:4])
    assert target.getvalue() == b"one"
    stream.feed(b"two")
    assert target.getvalue() == b"one" + TOKEN[:4] + b"two"
    assert stream.status is None


def test_every_test_file_runs_in_one_rig_of_nested_paging() -> None:
    listed = [name for group in rig.groups("nested") for name in group if name.startswith("tests/kvm/test_")]
    there = {f"tests/kvm/{path.name}" for path in (Path(__file__).parents[1] / "kvm").glob("test_*.py")}
    assert len(listed) == len(set(listed))
    assert there - set(listed) == {f"tests/kvm/test_{name}.py" for name in rig.ELSEWHERE}


def test_what_shadow_paging_runs_is_there() -> None:
    names = [name for group in rig.groups("shadow") for name in group if not name.startswith("-")]
    assert all((Path(__file__).parents[2] / name).exists() for name in names)


@pytest.fixture
def two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "groups", lambda mmu, checks: [["one"], ["two"]])


@pytest.mark.usefixtures("two_groups")
@pytest.mark.parametrize(
    ("statuses", "failed"),
    [
        ([0, 0], 0),
        ([1, 0], 1),
        ([0, 2], 1),
        ([STATUS_TIMEOUT], 1),
        ([STATUS_DIED, STATUS_DIED, 0, STATUS_DIED, 0], 0),
        ([STATUS_DIED, 1, 0], 1),
        ([0, *[STATUS_DIED] * 3], 1),
        ([rig.NO_TESTS, 0], 0),
        ([rig.NO_TESTS, rig.NO_TESTS], 1),
        ([rig.NO_TESTS, 1], 1),
    ],
)
def test_a_rig_that_dies_has_other_tries_and_a_failed_test_has_not(
    monkeypatch: pytest.MonkeyPatch, statuses: list[int], failed: int
) -> None:
    left = statuses.copy()
    monkeypatch.setattr(rig, "run", lambda command, **options: left.pop(0))
    assert (rig.run_kind("nested", ["-k", "serial"], rig.Options()), left) == (failed, [])


@pytest.mark.usefixtures("two_groups")
def test_without_arguments_each_group_must_test_something(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [0, rig.NO_TESTS]
    monkeypatch.setattr(rig, "run", lambda command, **options: left.pop(0))
    assert rig.run_kind("nested", [], rig.Options(again=True)) == 1


@pytest.mark.parametrize(
    ("statuses", "status", "tries"),
    [
        ([0], 0, ["all"]),
        ([1, 0], 0, ["all", "failed"]),
        ([1, 1], 1, ["all", "failed"]),
        ([4], 1, ["all"]),
        ([rig.NO_TESTS], 1, ["all"]),
    ],
)
def test_failed_tests_have_another_try_when_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, statuses: list[int], status: int, tries: list[str]
) -> None:
    """A script stands for pytest, and the shell for the rig."""
    told = tmp_path / "told"
    script = f"import sys; w = open({str(told)!r}, 'a+'); w.seek(0); n = len(w.readlines())\n"
    script += "print('failed' if '--last-failed' in sys.argv else 'all', file=w); sys.exit(" + str(statuses) + "[n])"
    (tmp_path / "pytest.py").write_text(script)
    monkeypatch.setattr(rig, "groups", lambda mmu, checks: [["one"]])
    monkeypatch.setattr(rig, "PYTEST", f"{sys.executable} {tmp_path / 'pytest.py'}")
    monkeypatch.setattr(rig, "run", lambda command, **options: subprocess.run(["sh", "-c", command]).returncode)
    assert rig.run_kind("nested", ["-k", "one or two"], rig.Options(again=True)) == status
    assert told.read_text().split() == tries


def test_what_the_kinds_say_is_told_apart(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    rig.hand_on("shadow", io.BytesIO(b"one\ntwo\nlast"))
    assert capfdbinary.readouterr().out == b"shadow  one\nshadow  two\nshadow  last\n"


def unpack(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Return (name, mode, data) of each entry of a newc archive, in order, without the last."""
    entries: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        data_at = -(-(at + 110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return entries
        entries.append((name, mode, archive[data_at : data_at + size]))
        at = -(-(data_at + size) // 4) * 4


def test_archive(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"12345")
    (tmp_path / "folder/file").chmod(0o755)
    (tmp_path / "link").symlink_to("folder/file")
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / "pipe")
    file = io.BytesIO()
    archive = Archive(file)
    archive.tree(tmp_path, "a/b", skip_in_checkout)
    archive.close()
    assert unpack(file.getvalue()) == [
        ("a", stat.S_IFDIR | 0o755, b""),
        ("a/b", stat.S_IFDIR | 0o755, b""),
        ("a/b/folder", stat.S_IFDIR | 0o755, b""),
        ("a/b/folder/file", stat.S_IFREG | 0o755, b"12345"),
        ("a/b/link", stat.S_IFLNK | 0o777, b"folder/file"),
    ]
    assert len(file.getvalue()) % 4 == 0
