"""Debian's unmodified cloud kernel with four vCPUs: user space, topology, clock, entropy, disks, reset, power-off.

PYVCPU_LINUX_BOOTS is how many boots in a row test_boots_in_a_row makes: 2 when not given, 20 in the long run.
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
    cpu_option,
    make_ext4,
    read_ext4,
)
from tests.kvm.support import DEVICE

MIB = 1 << 20
BOOTS = int(os.environ.get("PYVCPU_LINUX_BOOTS", "2"))
DRIVERS = "modprobe -a virtio_mmio virtio_blk virtio_rng"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not KERNEL, reason="PYVCPU_GUEST_KERNEL names no kernel: `make test-amd` has one"),
]


def no_complaints(text: str) -> None:
    """Fail when the kernel said that something is wrong."""
    assert not COMPLAINTS.search(text), text


@pytest.mark.parametrize(("sockets", "cores", "threads"), [(1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_topology(sockets: int, cores: int, threads: int) -> None:
    files = " ".join(f"*/topology/{name}" for name in ("physical_package_id", "package_cpus_list", "core_cpus_list"))
    said = boot(
        smp=f"4,sockets={sockets},cores={cores},threads={threads}",
        run=f"cd /sys/devices/system/cpu; cat online; grep . {files}",
    )
    no_complaints(said)
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


def test_every_message_of_a_boot_and_the_clock_and_entropy() -> None:
    run = "; ".join(
        (
            "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
            "read up rest </proc/uptime; echo before $(date +%s) $up",
            "sleep 2",
            "read up rest </proc/uptime; echo after $(date +%s) $up",
            DRIVERS,
            "head -c 4096 /dev/hwrng | wc -c",
            "cat /proc/interrupts",
        )
    )
    started = time.time()
    said = boot("--rng", run=run, kernel="console=ttyS0")
    no_complaints(said)
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


def test_whole_host_processor() -> None:
    if cpu_option() != "host":
        pytest.skip("XSAVE of this processor loses what guests enable: see cpu_option()")
    no_complaints(boot(cpu="host", run="true"))


def test_boots_in_a_row() -> None:
    for _ in range(BOOTS):
        no_complaints(boot(run="true"))


def test_reset_boots_again_when_asked_to() -> None:
    """The shell of the first boot asks for a reset, that of the second ends, and init powers off."""
    with Linux("--reboot") as guest:
        guest.console.expect(READY)
        guest.console.expect("# ")
        guest.send(b"reboot -f\n")
        guest.console.expect(READY)
        guest.console.expect("# ")
        guest.send(b"exit\n")
        guest.console.expect(r"^EXIT 0\r?$")
        assert guest.finish() == 0
    no_complaints(guest.console.text)


def test_pause_leaves_no_lockup() -> None:
    """The watchdog takes 6 seconds without a sign of life for a lockup; the machine pauses for 8, and runs on."""
    run = "echo 3 >/proc/sys/kernel/watchdog_thresh; cat /proc/sys/kernel/soft_watchdog; echo STARTED;"
    run += " for i in 1 2 3 4 5; do sleep 1; done; echo FINISHED"
    console = Console()
    with Machine("256M", 4, cpu=cpu_option(), kvm=DEVICE, output=console.feed) as machine:
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
    with Linux("--disk", str(disk), run=f"{WRITE} && sleep 1000") as guest:
        checksum = guest.console.expect(SUM)[1]
        guest.console.expect(r"^SYNCED\r?$")
        guest.process.kill()
        guest.finish()
    check_disk(disk, checksum)
    no_complaints(guest.console.text)
