"""Fifty machines from one snapshot: they share its memory until they write to it, and go their own ways."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine

# mov 0x8000,%al; mul %al; mov %ax,0x9000; hlt: squares the byte at 0x8000
CODE = bytes.fromhex("a00080 f6e0 a30090 f4")
CLONES = 50


def main() -> None:
    with Machine(memory="16M") as machine:
        machine.load(CODE)
        machine.memory.write(1 << 20, b"much that all of them share " * 300_000)
        machine.start()
        snapshot = machine.snapshot()
    print(snapshot.memory_size >> 20, "MiB of memory in the snapshot")
    clones = [Machine.from_snapshot(snapshot) for _ in range(CLONES)]
    squares = []
    for number, clone in enumerate(clones):
        clone.memory[0x8000] = number
        clone.run(timeout=5)
        squares.append(clone.memory.read_int(0x9000, 2))
    print("squares:", *squares[:8], "...", squares[-1])
    print("each has:", clones[7].memory.read(1 << 20, 27).decode())
    # A second snapshot of a clone has only the pages that it changed: its number, and the square.
    print("pages that a clone has changed:", clones[7].snapshot().image.stored)
    for clone in clones:
        clone.close()


if __name__ == "__main__":
    main()
