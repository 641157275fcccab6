"""Pause, resume, unplug and plug one vCPU while the others run on.

In images/ticker.S each vCPU counts in a word of its own in guest memory, which is looked at from outside.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine

IMAGES = Path(__file__).resolve().parent / "images"
COUNTERS = 0x8000
VCPUS = 3


def look(machine: Machine, what: str) -> None:
    """Print what each vCPU is doing and how far it counted in a tenth of a second."""
    words = machine.memory.view(COUNTERS, 4 * VCPUS).cast("I")  # a window on guest memory: it changes as we look
    before = list(words)
    time.sleep(0.1)
    columns = []
    for vcpu, earlier, now in zip(machine.vcpus, before, words, strict=True):
        columns.append(f"{vcpu.index}: {vcpu.state!s:<9} +{(now - earlier) % 2**32:<8}")
    print(f"{what:<18}", *columns)


def main() -> None:
    with Machine(memory="1M", smp=VCPUS) as machine:
        machine.load(IMAGES / "ticker.bin")
        machine.start()
        look(machine, "started")
        machine.resume()
        look(machine, "all resumed")

        vcpu = machine.vcpus[1]
        vcpu.pause()  # when this returns, the vCPU has stopped
        look(machine, "vCPU 1 paused")
        print(f"{'':<18} vCPU 1 stopped at RIP {vcpu.registers.rip:#x}")
        vcpu.resume()
        look(machine, "vCPU 1 resumed")

        machine.unplug(1)  # ends its thread
        look(machine, "vCPU 1 unplugged")
        machine.memory.write_int(COUNTERS + 4, 0)
        machine.plug(1)  # starts it anew
        look(machine, "vCPU 1 plugged")
        machine.pause()
        look(machine, "all paused")


if __name__ == "__main__":
    main()
