"""The rig's own parts that need no QEMU and no package: output, archives, modules, which kernel and QEMU is taken."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tools.rig import __main__ as rig
from tools.rig import debian, emulator, image
from tools.rig import run as rig_run
from tools.rig.cpio import Archive
from tools.rig.debian import RigError
from tools.rig.modules import Modules, plain_name
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


@pytest.mark.parametrize("size", [1, 7, 15])
def test_output_that_ends_like_the_last_line_begins_is_not_lost(size: int) -> None:
    target = io.BytesIO()
    stream = Stream(TOKEN, target)
    stream.feed(b"one" + TOKEN[:size])
    assert target.getvalue() == b"one"
    stream.end()
    assert (target.getvalue(), stream.status) == (b"one" + TOKEN[:size], None)


def test_every_test_file_runs_in_one_rig_of_nested_paging() -> None:
    listed = [name for group in rig.groups("nested") for name in group if name.startswith("tests/kvm/test_")]
    there = {f"tests/kvm/{path.name}" for path in (Path(__file__).parents[1] / "kvm").glob("test_*.py")}
    assert len(listed) == len(set(listed))
    assert there - set(listed) == {f"tests/kvm/test_{name}.py" for name in rig.ELSEWHERE}


def test_what_shadow_paging_runs_is_there() -> None:
    names = [name for group in rig.groups("shadow") for name in group if not name.startswith("-")]
    assert all((Path(__file__).parents[2] / name).exists() for name in names)


def test_what_the_checks_run_is_there() -> None:
    names = [name for group in rig.groups("nested", checks=True) for name in group]
    for name in names:
        file, _, function = name.partition("::")
        assert f"def {function}" in (Path(__file__).parents[2] / file).read_text()
    assert len(names) == len(set(names)) >= 8


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


MODINFO = b"\x7fELF code\0license=GPL\0depends=%s\0retpoline=Y\0"


def write_modules(folder: Path) -> Modules:
    """Write what a kernel package has: one module needs another; one is compressed by xz, one built in."""
    folder.mkdir()
    (folder / "kernel").mkdir()
    plain, other = MODINFO % b"", MODINFO % b"plain-one,built_in"
    (folder / "kernel/plain-one.ko").write_bytes(plain)
    (folder / "kernel/needs-it.ko.xz").write_bytes(lzma.compress(other, check=lzma.CHECK_CRC32))
    (folder / "kernel/broken.ko.xz").write_bytes(b"not xz")
    (folder / "modules.builtin").write_text("kernel/drivers/built-in.ko\n")
    return Modules(folder)


def test_modules_come_with_what_they_need_and_uncompressed(tmp_path: Path) -> None:
    modules = write_modules(tmp_path / "6.99")
    assert modules.version == "6.99"
    assert modules.select(("needs-it",)) == {
        "needs_it.ko": MODINFO % b"plain-one,built_in",
        "plain_one.ko": MODINFO % b"",
    }
    assert modules.select(("built_in",)) == {}


@pytest.mark.parametrize(("name", "complaint"), [("absent", "6.99 has no module absent"), ("broken", "unpacked")])
def test_modules_that_cannot_be_had(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(RigError, match=complaint):
        write_modules(tmp_path / "6.99").select((name,))


def test_modules_compressed_by_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "6.99"
    folder.mkdir()
    (folder / "one.ko.zst").write_bytes(b"")
    if shutil.which("zstd"):
        done = subprocess.run(["zstd", "-c"], input=MODINFO % b"", capture_output=True, check=True)
        (folder / "one.ko.zst").write_bytes(done.stdout)
        assert Modules(folder).select(("one",)) == {"one.ko": MODINFO % b""}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RigError, match=r"one.ko.zst is compressed: install zstd"):
        Modules(folder).select(("one",))


def test_plain_name() -> None:
    assert [plain_name(name) for name in ("virtio-rng.ko.xz", "kvm-amd.ko", "kvm")] == ["virtio_rng", "kvm_amd", "kvm"]


URIS = """Reading package lists...
'http://deb.debian.org/debian/pool/main/q/qemu/x.deb' qemu-system-x86_1%3a10.0.13+ds-0_amd64.deb 10 SHA256:ab
'http://deb.debian.org/debian/pool/main/b/busybox.deb' busybox-static_1.35.0-4+b9_amd64.deb 20 SHA256:cd
"""


def test_lists_of_files() -> None:
    lines = debian.files(URIS)
    assert lines == [
        "busybox-static_1.35.0-4+b9_amd64.deb 20 SHA256:cd",
        "qemu-system-x86_1%3a10.0.13+ds-0_amd64.deb 10 SHA256:ab",
    ]
    names = ["busybox-static=1.35.0-4+b9", "qemu-system-x86=1:10.0.13+ds-0"]
    assert [debian.name_and_version(line) for line in lines] == names


@pytest.mark.parametrize(("name", "suites"), [("bookworm", 3), ("trixie", 3), ("sid", 1)])
def test_a_release_has_lists_of_its_own(
    name: str, suites: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever release the host is: apt is told where everything is."""
    monkeypatch.setenv("PYVCPU_RIG_CACHE", str(tmp_path))
    monkeypatch.setenv("PYVCPU_DEBIAN_MIRROR", "http://localhost/debian")
    monkeypatch.setattr(debian, "keyring", lambda: Path("/keys.gpg"))
    said = tmp_path / "said"
    for program in ("apt-get", "apt-cache"):
        script = tmp_path / program
        script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$0" "$@" >>{said}\necho "  Candidate: 1.2-3"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    release = debian.Release(name)
    assert release.version("thing") == "1.2-3"
    lines = release.sources().splitlines()
    assert lines[0] == f"deb [arch=amd64 signed-by=/keys.gpg] http://localhost/debian {name} main"
    assert len(lines) == suites
    words = said.read_text().splitlines()
    assert [word for word in words if word in ("update", "policy", "thing")] == ["update", "policy", "thing"]
    assert words.count(f"Dir::Etc::sourcelist={tmp_path}/apt/{name}/sources.list") == 2
    assert words.count("Dir::Etc::sourceparts=/dev/null") == 2
    assert debian.Release(name).version("thing") == "1.2-3"
    assert said.read_text().splitlines().count("update") == 1  # the lists are a moment old


@pytest.fixture
def sid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Debian releases with packages of these versions, and no host's QEMU."""
    versions = {("sid", "linux-image-cloud-amd64"): "7.2.13-1", ("sid", "qemu-system-x86"): "1:11.1.3+ds-1"}
    versions[("trixie", "qemu-system-x86")] = "1:10.0.13+ds-0+deb13u1"
    monkeypatch.setattr(debian.Release, "version", lambda release, package: versions[release.name, package])
    monkeypatch.setattr(emulator, "system_version", lambda: "")


@pytest.mark.usefixtures("sid")
@pytest.mark.parametrize(
    ("kernel", "release"),
    [("6.1", "bookworm"), ("6.12", "trixie"), ("sid", "sid"), ("7", "sid"), ("7.2", "sid"), ("7.2.13", "sid")],
)
def test_the_release_that_has_a_kernel(kernel: str, release: str) -> None:
    assert image.kernel_release(kernel).name == release


@pytest.mark.usefixtures("sid")
@pytest.mark.parametrize("kernel", ["6", "6.2", "7.20", "8"])
def test_a_kernel_that_no_release_has(kernel: str) -> None:
    with pytest.raises(RigError, match=rf"has a kernel {kernel}: sid has 7.2.13-1, which is KERNEL=sid"):
        image.kernel_release(kernel)


@pytest.mark.usefixtures("sid")
@pytest.mark.parametrize("wanted", ["9", "11.2", "1"])
def test_a_qemu_that_no_release_has(wanted: str) -> None:
    with pytest.raises(RigError, match=rf"no Debian release has QEMU {wanted}: sid has 11.1.3"):
        emulator.find_emulator(wanted, "nested")


@pytest.mark.usefixtures("sid")
def test_the_hosts_qemu(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It is used when it is asked for, or is what is wanted, or when no other can be had and none was asked for."""
    with pytest.raises(RigError, match="qemu-system-x86_64 is not installed"):
        emulator.find_emulator("system", "nested")
    with pytest.raises(RigError, match="/nowhere/qemu is no program"):
        emulator.find_emulator("/nowhere/qemu", "nested")
    assert emulator.find_emulator("/bin/true", "nested").command == ["/bin/true"]

    def nothing(wanted: str) -> emulator.Emulator:
        raise RigError("no network")

    monkeypatch.setattr(emulator, "unpacked", nothing)
    monkeypatch.setattr(emulator, "system_version", lambda: "7.2.22")
    hosts = ["qemu-system-x86_64"]
    for wanted, mmu in (("system", "nested"), ("7.2", "nested"), ("7", "nested"), (None, "shadow")):
        assert emulator.find_emulator(wanted, mmu).command == hosts
    assert capfd.readouterr().err == ""
    assert emulator.find_emulator(None, "nested").command == hosts
    assert "no network\nQEMU 10.0 cannot be had; the host's 7.2.22 is used" in capfd.readouterr().err
    with pytest.raises(RigError, match="no network"):
        emulator.find_emulator("10.0", "nested")


LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


def test_an_unpacked_qemu_is_started_by_its_own_loader(tmp_path: Path) -> None:
    source, root = tmp_path / "all", tmp_path / "root"
    for name in ("usr/bin/qemu-system-x86_64", LOADER, "usr/share/qemu/a", "usr/share/doc/b"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    (source / "usr/lib/x86_64-linux-gnu/qemu").mkdir()
    assert emulator.keep_used(source, root) == root
    assert not (root / "usr/share/doc").exists()
    found = emulator.emulator(root)
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    start = [f"{root}/{LOADER}", "--inhibit-cache", "--library-path", libraries]
    firmware = ["-L", f"{root}/usr/share/qemu"]
    assert found.command[:7] == [*start, f"{root}/usr/bin/qemu-system-x86_64", *firmware]
    assert found.environment == {"QEMU_MODULE_DIR": f"{libraries}/qemu"}


# Stands for QEMU: the command's output, QEMU's own, the kernel's, and an end with the status or by an abort.
FAKE = """
import os, re, sys
words = " ".join(sys.argv)
first, second = map(int, re.findall(r"socket,id=port\\d,fd=(\\d+)", words))
console = re.search(r"-serial file:(\\S+)", words)[1]
token, mode = open(os.path.dirname(console) + "/token").read(), sys.argv[1]
os.write(first, b"said")
os.write(second, b"complained")
print("Bail out! ERROR", flush=True)
print("assertion failed", file=sys.stderr, flush=True)
if mode == "talks":
    open(console, "w").write("line\\n" * 100 + "Kernel panic\\n")
if mode == "ends":
    for port in (first, second):
        os.write(port, token.encode() + b"3\\n")
"""


@pytest.mark.parametrize(
    ("mode", "status", "last"), [("ends", 3, None), ("silent", STATUS_DIED, "nothing"), ("talks", STATUS_DIED, "panic")]
)
def test_what_qemu_says_is_kept_apart_from_the_commands_output(
    mode: str,
    status: int,
    last: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = tmp_path / "qemu.py"
    script.write_text(FAKE)
    for name in ("vmlinuz", "base.cpio"):
        (tmp_path / name).touch()
    monkeypatch.setattr(rig_run, "find_image", lambda kernel: tmp_path)
    program = emulator.Emulator([sys.executable, str(script), mode])
    monkeypatch.setattr(rig_run, "find_emulator", lambda wanted, mmu: program)

    def write_token(path: Path, image: Path, command: str, token: str, mmu: str, add: str | None) -> None:
        path.with_name("token").write_text(token)

    monkeypatch.setattr(rig_run, "write_initrd", write_token)
    assert rig_run.run("true") == status
    said = capfd.readouterr()
    assert said.out == "said"
    assert said.err.startswith("complained")
    assert "rig: QEMU said:\nBail out! ERROR\nassertion failed\n" in said.err
    if last is None:
        assert "kernel said" not in said.err
    else:
        lines = said.err.partition("its kernel said last:\n")[2].splitlines()
        assert lines == (["line"] * 39 + ["Kernel panic"] if last == "panic" else ["nothing"])
