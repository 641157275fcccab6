"""Fuzz a parser: restore the machine, write an input, run to the end, keep what went further than before."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine, Vcpu

PARSER = Path(__file__).resolve().parent / "images" / "parser.bin"
INPUT, LETTERS = 0x8000, b"abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    chance, corpus, covered = random.Random(1), [b"aaaa"], set[int]()
    seen: set[int] = set()

    def cover(vcpu: Vcpu, data: bytes) -> None:
        seen.add(data[0])

    with Machine(memory="1M") as machine:
        machine.on_port(0x50, write=cover)
        machine.load(PARSER)
        machine.start()
        ready = machine.snapshot()  # of a real guest, once it has booted
        for tries in range(1, 20_001):
            data = bytearray(chance.choice(corpus))
            data[chance.randrange(len(data))] = chance.choice(LETTERS)
            seen.clear()
            machine.restore(ready)
            machine.memory.write(INPUT, data)
            outcome = machine.run(timeout=5)
            if seen - covered:
                covered |= seen
                corpus.append(bytes(data))
                print(f"{len(covered)} of 4 places reached by {bytes(data)!r}")
            if outcome.status != 1:  # 0 from the guest is (0 << 1) | 1
                print(f"it fails at {bytes(data)!r}; fewer than {tries // 1000 + 1},000 tries")
                return


if __name__ == "__main__":
    main()
