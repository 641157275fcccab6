"""Linux with four CPUs is saved in the middle of its work, and goes on in a new machine as if nothing had happened."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pyvcpu import Machine
from pyvcpu.devices.disk_file import DiskFile
from pyvcpu.devices.virtio_blk import VirtioBlk
from pyvcpu.devices.virtio_rng import VirtioRng
from tests.amd.linux import COMPLAINTS, INITRD, KERNEL, LONG, TERSE, Console
from tests.kvm.support import DEVICE

TIMES = int(os.environ.get("PYVCPU_LINUX_RESUMES", "2"))
PIECES = 8
pytestmark = [
    pytest.mark.timeout(390),  # before the rig itself counts as dead
    pytest.mark.skipif(not KERNEL, reason="PYVCPU_GUEST_KERNEL names no kernel: `make test-amd` has one"),
]
# Reads the disk and random numbers, computes on all four CPUs, and tells the time, in steps between which it is saved.
RUN = (
    "modprobe -a virtio_mmio virtio_blk virtio_rng; echo 3 >/proc/sys/kernel/watchdog_thresh; echo STARTED;"
    f" i=0; while [ $i -lt {PIECES} ]; do i=$((i+1));"
    " for c in 1 2 3 4; do dd if=/dev/zero bs=64k count=16 2>/dev/null | sha256sum >/dev/null & done; wait;"
    " dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null; head -c 8 /dev/hwrng >/dev/null;"
    " echo STEP $i $(date +%s); sleep 0.3; done; sha256sum </dev/vda; echo FINISHED"
)


@pytest.mark.parametrize("number", range(TIMES))
@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_linux_goes_on(irqchip: str, number: int, tmp_path: Path) -> None:
    path, image = tmp_path / "snapshot", tmp_path / "disk"
    image.write_bytes(os.urandom(1 << 20))
    fd = os.open(image, os.O_RDWR)
    console = Console()
    begin = time.monotonic()
    with Machine("256M", 4, cpu="host", kvm=DEVICE, irqchip=irqchip, output=console.feed) as machine:
        disk = DiskFile(fd, "disk")
        for device in (VirtioBlk(disk), VirtioRng()):
            machine.board.add_virtio(device)
        machine.load(KERNEL, initrd=[("", Path(INITRD).read_bytes())], append=f'{TERSE} RUN="{RUN}"')
        machine.start()
        machine.resume()
        console.expect(r"^STARTED\r?$")
        booted = time.monotonic() - begin
        guests, hosts = int(console.expect(r"^STEP 2 (\d+)\r?\n")[1]), time.time()
        time.sleep(0.05 * number)
        with machine.snapshot() as snapshot:
            snapshot.save(path)
    disk.close()
    time.sleep(4)
    disk = DiskFile(fd, "disk")
    console = Console()
    begin = time.monotonic()
    with Machine.from_snapshot(
        path, devices=[VirtioBlk(disk), VirtioRng()], kvm=DEVICE, output=console.feed
    ) as machine:
        resumed = time.monotonic() - begin
        machine.resume()
        found = console.expect(r"^STEP (\d) (\d+)\r?\n")
        assert abs(int(found[2]) - guests - (time.time() - hosts)) < 10  # it knows that it stood still
        console.expect(r"^FINISHED\r?$")
        outcome = machine.wait(LONG)
    assert outcome is not None
    assert outcome.status == 0, outcome
    assert not COMPLAINTS.search(console.text), console.text
    assert "stall" not in console.text
    assert resumed < booted / 3, (resumed, booted)
    disk.close()
    os.close(fd)
