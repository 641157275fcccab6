"""Debian's unmodified cloud kernel with four vCPUs: user space, topology, clock, entropy, disks, reset, power-off.

A boot takes 10 seconds and more where the processor is emulated, so each test looks at several things in one.
PYVCPU_LINUX_BOOTS is how many boots in a row test_boots_in_a_row makes: none when not given, 20 in the long run, and
PYVCPU_LINUX_PASTED how many lines somebody pastes: 1,024 in the long run, 100 KiB.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

import pytest

from pyvcpu import Machine
from tests.amd.linux import (
    COMPLAINTS,
    INITRD,
    KERNEL,
    LONG,
    READY,
    TERSE,
    Console,
    Linux,
    boot,
    make_ext4,
    read_ext4,
)
from tests.kvm.support import DEVICE

MIB = 1 << 20
# Lines of 100 bytes. Emulated, each byte with its echo takes 2 ms; tests/kvm/test_cli.py has 100 KiB.
PASTED = int(os.environ.get("PYVCPU_LINUX_PASTED", "100"))
BOOTS = int(os.environ.get("PYVCPU_LINUX_BOOTS", "0"))
DRIVERS = "modprobe -a virtio_mmio virtio_blk virtio_rng"

pytestmark = [
    pytest.mark.timeout(390),  # before the rig itself counts as dead
    pytest.mark.skipif(not KERNEL, reason="PYVCPU_GUEST_KERNEL names no kernel: `make test-amd` has one"),
]


def no_complaints(text: str) -> None:
    """Fail when the kernel said that something is wrong."""
    assert not COMPLAINTS.search(text), text


FOUR_CORES = (1, 4, 1)
TELL_TOPOLOGY = "cat /proc/cpuinfo; cd /sys/devices/system/cpu; cat online; grep . " + " ".join(
    f"*/topology/{name}" for name in ("physical_package_id", "package_cpus_list", "core_cpus_list")
)


def smp_option(sockets: int, cores: int, threads: int) -> str:
    return f"4,sockets={sockets},cores={cores},threads={threads}"


def check_topology(said: str, sockets: int, cores: int, threads: int) -> None:
    """Fail unless TELL_TOPOLOGY said that the four CPUs are arranged so."""
    found = {(int(cpu), name): value for cpu, name, value in re.findall(r"^cpu(\d)/topology/(\w+):(\S+)", said, re.M)}

    def together(cpu: int, count: int) -> str:
        first = cpu // count * count
        return str(first) if count == 1 else f"{first}-{first + count - 1}"

    package = cores * threads
    assert found == {
        (cpu, name): value
        for cpu in range(4)
        for name, value in (
            ("physical_package_id", str(cpu // package)),
            ("package_cpus_list", together(cpu, package)),
            ("core_cpus_list", together(cpu, threads)),
        )
    }
    assert re.search(r"^0-3\r?$", said, re.M)
    fields = ("processor", "physical id", "siblings", "core id", "cpu cores")
    told = [re.findall(rf"^{name}\t+: (\d+)\r?$", said, re.M) for name in fields]
    assert [tuple(map(int, cpu)) for cpu in zip(*told, strict=True)] == [
        (cpu, cpu // package, package, cpu % package // threads, cores) for cpu in range(4)
    ]


def test_two_sockets_and_the_split_irqchip() -> None:
    topology = (2, 2, 1)
    said = boot("--irqchip", "split", smp=smp_option(*topology), run=TELL_TOPOLOGY)
    no_complaints(said)
    check_topology(said, *topology)


def test_threads_and_a_reset_that_ends_the_run() -> None:
    topology = (1, 2, 2)
    with Linux(smp=smp_option(*topology), run=f"{TELL_TOPOLOGY}; stty -F /dev/console -echo; reboot -f") as guest:
        guest.console.expect(READY)
        assert guest.finish() == 0
    no_complaints(guest.console.text)
    check_topology(guest.console.text, *topology)
    assert guest.console.text.count("READY") == 1


def test_every_message_of_a_boot_and_the_clock_and_entropy() -> None:
    run = "; ".join(
        (
            "dmesg -n 5",  # from here on only warnings and errors come between what is said here
            "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
            "read up rest </proc/uptime; echo before $(date +%s) $up",
            "sleep 2",
            "read up rest </proc/uptime; echo after $(date +%s) $up",
            DRIVERS,
            "head -c 4096 /dev/hwrng | wc -c",
            "cat /proc/interrupts",
            TELL_TOPOLOGY,
        )
    )
    started = time.time()
    said = boot("--rng", run=run, kernel="console=ttyS0", smp=smp_option(*FOUR_CORES))
    no_complaints(said)
    check_topology(said, *FOUR_CORES)
    assert re.search(r"^kvm-clock\r?$", said, re.M)
    times = [
        (int(date), float(uptime)) for date, uptime in re.findall(r"^(?:before|after) (\d+) (\S+)\r?$", said, re.M)
    ]
    (first, up_first), (last, up_last) = times
    ended = time.time()
    assert started - 2 <= first <= last <= ended + 2
    assert 2 <= up_last - up_first <= ended - started
    assert abs((last - first) - (up_last - up_first)) <= 1.5
    assert re.search(r"^4096\r?$", said, re.M)
    assert re.search(r"ttyS0$", said.replace("\r", ""), re.M), "the serial port has an interrupt"


@pytest.mark.parametrize("number", range(1, BOOTS + 1))
def test_boots_in_a_row(number: int) -> None:
    no_complaints(boot(run="true"))


def test_reset_boots_again_and_what_is_pasted_arrives_whole() -> None:
    """In the shell of the second boot, text goes into `cat`, with the terminal's echo, as where somebody works."""
    lines = (f"{number:06} {'of the lines that somebody pastes into a terminal':.<92}\n" for number in range(PASTED))
    text = "".join(lines).encode()
    with Linux("--reboot") as guest:
        guest.console.expect(READY)
        guest.console.expect("# ")
        guest.send(b"reboot -f\n")
        guest.console.expect(READY)
        guest.console.expect("# ")
        guest.send(b"echo GO; cat >/tmp/pasted\n")
        guest.console.expect(r"^GO\r?$")
        guest.send(text + b"\x04")
        guest.send(b"sha256sum /tmp/pasted\n")
        assert guest.console.expect(r"^([0-9a-f]{64})  /tmp/pasted\r?$")[1] == hashlib.sha256(text).hexdigest()
        guest.send(b"exit\n")  # not before: the end of a session discards what its terminal has not sent yet
        guest.console.expect(r"^EXIT 0\r?$")
        assert guest.finish() == 0
    no_complaints(guest.console.text)
    assert "stall" not in guest.console.text


def test_pause_leaves_no_lockup() -> None:
    """The watchdog takes 6 seconds without a sign of life for a lockup; the machine pauses for 8, and runs on."""
    run = "echo 3 >/proc/sys/kernel/watchdog_thresh; cat /proc/sys/kernel/soft_watchdog; echo STARTED;"
    run += " for i in 1 2 3 4 5; do sleep 1; done; echo FINISHED"
    console = Console()
    with Machine("256M", 4, cpu="host", kvm=DEVICE, output=console.feed) as machine:
        machine.load(KERNEL, initrd=[("", Path(INITRD).read_bytes())], append=f'{TERSE} RUN="{run}"')
        machine.start()
        machine.resume()
        console.expect(r"^1\r?\nSTARTED\r?$")
        assert machine.pause(LONG)
        time.sleep(8)
        machine.resume()
        console.expect(r"^FINISHED\r?$")
        outcome = machine.wait(LONG)
    assert outcome is not None
    assert outcome.status == 0, outcome
    no_complaints(console.text)
    assert "stall" not in console.text


WRITE = (
    f"{DRIVERS}; mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/data bs=1M count=16"
    " && sha256sum /mnt/data && sync && echo SYNCED"
)
SUM = r"^([0-9a-f]{64})  /mnt/data\r?$"


def check_disk(path: Path, checksum: str) -> None:
    """Fail unless the disk holds the 16 MiB of that checksum."""
    data = read_ext4(path.read_bytes(), "data")
    assert (len(data), hashlib.sha256(data).hexdigest()) == (16 * MIB, checksum)


def test_disk_after_power_off_and_one_that_is_only_read(tmp_path: Path) -> None:
    disk = make_ext4(tmp_path / "disk")
    other = tmp_path / "other"
    other.write_bytes(b"\x5a" * MIB)
    run = f"{WRITE}; umount /mnt; echo ro $(cat /sys/block/vdb/ro); head -c 1048576 /dev/vdb | sha256sum;"
    run += " dd if=/dev/zero of=/dev/vdb bs=512 count=1 || echo REFUSED"
    said = boot("--disk", str(disk), "--disk", f"{other},ro", run=run)
    no_complaints(said)
    found = re.search(SUM, said, re.M)
    assert found is not None, said
    check_disk(disk, found[1])
    assert re.search(r"^ro 1\r?$", said, re.M)
    assert f"{hashlib.sha256(other.read_bytes()).hexdigest()}  -" in said
    assert re.search(r"^REFUSED\r?$", said, re.M), said
    assert other.read_bytes() == b"\x5a" * MIB


def test_disk_after_the_process_was_killed(tmp_path: Path) -> None:
    """What the guest has synced is there, however the process ends."""
    disk = make_ext4(tmp_path / "disk")
    with Linux("--disk", str(disk), "--irqchip", "split", run=f"{WRITE} && sleep 1000") as guest:
        checksum = guest.console.expect(SUM)[1]
        guest.console.expect(r"^SYNCED\r?$")
        guest.process.kill()
        guest.finish()
    check_disk(disk, checksum)
    no_complaints(guest.console.text)
