"""A device written in Python, which hands out work to as many vCPUs as there are and collects their answers.

The guest's side is images/device.S. Reading port 0x500 gives the next number, 0 when there are no more; writing it
gives the answer: how many steps lead to 1, when each halves an even number and makes an odd n into 3n + 1.
"""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine, Vcpu

IMAGES = Path(__file__).resolve().parent / "images"
PORT = 0x500


class WorkQueue:
    """Each vCPU calls in its own thread, several at the same time: `_lock` guards everything."""

    def __init__(self, numbers: list[int]) -> None:
        self._lock = threading.Lock()
        self._waiting = numbers[::-1]
        self._given: dict[int, int] = {}  # vCPU index: what it is working on
        self.answers: dict[int, int] = {}
        self.done_by: dict[int, int] = {}

    def read(self, vcpu: Vcpu, size: int) -> int:
        """Serve `in %dx, %eax`: an int is put into as many bytes as the guest reads."""
        with self._lock:
            number = self._waiting.pop() if self._waiting else 0
            self._given[vcpu.index] = number
            return number

    def write(self, vcpu: Vcpu, data: bytes) -> None:
        """Serve `out %eax, %dx`. A guest may write at any time: one that was given nothing is not listened to."""
        with self._lock:
            number = self._given.pop(vcpu.index, 0)
            if number:
                self.answers[number] = int.from_bytes(data, "little")
                self.done_by[number] = vcpu.index


def steps(number: int) -> int:
    """Do in Python what the guest does."""
    count = 0
    while number != 1:
        number = 3 * number + 1 if number % 2 else number // 2
        count += 1
    return count


def main() -> None:
    queue = WorkQueue([27, 97, 871, 6171, 77031, 837799])
    with Machine(memory="1M", smp=4) as machine:
        machine.load(IMAGES / "device.bin", mode="long")
        machine.on_port(PORT, read=queue.read, write=queue.write, name="work queue")
        outcome = machine.run(timeout=30)
    print(f"{outcome.reason}; the answers, by vCPU:")
    for number, answer in queue.answers.items():
        assert answer == steps(number), "the guest and Python disagree"
        print(f"  vCPU {queue.done_by[number]}: {number} takes {answer} steps")


if __name__ == "__main__":
    main()
