"""Four vCPUs, each a thread of this process. They start at the same address and tell each other apart by a register."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine

COUNTER = 0x2000
CODE = bytes.fromhex(  # for 32-bit protected mode; EDI is the index of the vCPU, ESI how many there are
    "b9 e8 03 00 00"  #            mov  $1000, %ecx
    "f0 ff 05 00 20 00 00"  # add: lock incl 0x2000     four processors, one word: without `lock` some adds get lost
    "49"  #                        dec  %ecx
    "75 f6"  #                     jnz  add
    "89 f8"  #                     mov  %edi, %eax
    "e6 50"  #                     out  %al, $0x50      tell who is done
    "f4"  #                        hlt
)


def main() -> None:
    done: list[int] = []  # append() is atomic; anything more that several vCPUs share needs a lock
    with Machine(memory="1M", smp=4) as machine:
        machine.load(CODE, mode="protected")
        machine.on_port(0x50, write=lambda vcpu, data: done.append(data[0]))

        machine.start()  # makes the threads; the vCPUs are paused, and nothing has run yet
        for vcpu in machine.vcpus:
            name = Path(f"/proc/self/task/{vcpu.thread_id}/comm").read_text().strip()
            print(f"{vcpu}: host thread {name!r}, EDI {vcpu.registers.rdi}, ESP {vcpu.registers.rsp:#x}")

        outcome = machine.run(timeout=5)
        print(f"{outcome.reason}: the machine ends when the last vCPU has halted")
        print(f"they finished in the order {done}; the counter is {machine.memory.read_int(COUNTER)}")


if __name__ == "__main__":
    main()
