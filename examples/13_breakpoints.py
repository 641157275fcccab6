"""Breakpoints with handlers in Python: an answer that is changed on its way, a variable that is watched, single steps.

The guest asks `double` for twice of what it counts, in 64-bit mode, and writes each answer to a port.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine, Vcpu

PORT = 0x500
COUNTER = 0x2000
CODE = bytes.fromhex(
    "66 ba 00 05"  # 1000: mov $0x500,%dx
    "ff 04 25 00 20 00 00"  # 1004: incl 0x2000
    "8b 04 25 00 20 00 00"  # 100b: mov 0x2000,%eax
    "e8 07 00 00 00"  # 1012: call double
    "ef"  # 1017: out %eax,(%dx)
    "83 f8 06"  # 1018: cmp $6,%eax
    "75 e7"  # 101b: jne 0x1004
    "f4"  # 101d: hlt
    "01 c0"  # 101e double: add %eax,%eax
    "c3"  # 1020: ret
)
SYMBOLS = b"""\
0000000000001000 T start
000000000000101e T double
0000000000001021 T end
"""


def main() -> None:
    with Machine(memory="1M", warn=lambda line: print("note:", line)) as machine:
        machine.load(CODE, mode="long")
        machine.add_symbols(SYMBOLS)
        machine.on_port(PORT, write=lambda vcpu, data: print("  the guest writes", int.from_bytes(data, "little")))

        # One instruction at a time, before anything else.
        trail = machine.trace_instructions(6)
        print("the first instructions:", *(machine.symbols.describe(address) for address in trail))

        def asked(vcpu: Vcpu) -> None:
            """Make the answer to 2 that to 3; registers and memory are the handler's to change."""
            caller = vcpu.memory.read_int(vcpu.registers.rsp)
            print(f"{machine.symbols.describe(caller)} asks for twice of {vcpu.registers.rax}")
            if vcpu.registers.rax == 2:
                vcpu.registers.rax = 3

        point = machine.break_at("double", asked)
        print(machine.run(timeout=5), f"after {point.hits} times")

        # Again, stopped by a handler that says False where the count gets to 3.
        point.remove()
        machine.reset(reload=True)
        machine.watch(COUNTER, 4, "w", lambda vcpu: vcpu.memory.read_int(COUNTER, 4) != 3)
        outcome = machine.run(timeout=5)
        vcpu = machine.vcpus[0]
        print(outcome, "at", machine.symbols.describe(vcpu.registers.rip))
        print("the next step leads to", machine.symbols.describe(vcpu.step()), "with EAX", vcpu.registers.rax)


if __name__ == "__main__":
    main()
