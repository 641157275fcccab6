"""Interrupts from Python: a thread hands a sleeping guest one letter at a time, through a line of its PICs."""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine, Vcpu

IRQ, PORT = 5, 0x50

CODE = (
    b"\xc7\x06\xb4\x00\x20\x10"  #  movw $0x1020, 0xb4   the handler of vector 0x2d; its segment is 0
    b"\xb0\x11\xe6\x20"  #          mov  $0x11, %al; out %al, $0x20   the PIC: ICW1 to 4,
    b"\xb0\x28\xe6\x21"  #          mov  $0x28, %al; out %al, $0x21   vectors from 0x28 on,
    b"\xb0\x04\xe6\x21"  #          mov  $0x04, %al; out %al, $0x21
    b"\xb0\x01\xe6\x21"  #          mov  $0x01, %al; out %al, $0x21
    b"\xb0\xdf\xe6\x21"  #          mov  $0xdf, %al; out %al, $0x21   all masked, save line 5
    b"\xe6\x50"  #                  out  %al, $0x50      ready
    b"\xfb\xf4"  #               1: sti; hlt
    b"\xeb\xfc"  #                  jmp  1b
    b"\xe4\x50"  #          0x1020: in   $0x50, %al      the handler
    b"\x84\xc0"  #                  test %al, %al
    b"\x74\x07"  #                  jz   2f
    b"\xe6\xe9"  #                  out  %al, $0xe9
    b"\xb0\x20\xe6\x20"  #          mov  $0x20, %al; out %al, $0x20   end of interrupt
    b"\xcf"  #                      iret
    b"\xe6\xf4"  #               2: out  %al, $0xf4      no more letters: exit
)


class Letters:
    """A device with one register and an interrupt line, which is high while a letter waits in the register."""

    def __init__(self, machine: Machine, text: bytes) -> None:
        self._machine = machine
        self._text = text
        self._free = threading.Semaphore(0)  # the guest has taken what was there: the register is the thread's
        self._register = 0
        self.interrupts = 0
        threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        for letter in self._text + b"\0":
            self._free.acquire()
            self._register = letter
            self.interrupts += 1
            self._machine.set_line(IRQ, True)  # wakes the vCPU, which sleeps in the kernel

    def ready(self, vcpu: Vcpu, data: bytes) -> None:
        """Serve `out %al, $0x50`, on the vCPU's thread."""
        self._free.release()

    def read(self, vcpu: Vcpu, size: int) -> int:
        """Serve `in $0x50, %al`, on the vCPU's thread."""
        letter = self._register
        self._machine.set_line(IRQ, False)
        self._free.release()
        return letter


def main() -> None:
    with Machine(memory="1M", irqchip="kernel") as machine:
        machine.load(CODE)
        letters = Letters(machine, b"one interrupt for each letter\n")
        machine.on_port(PORT, read=letters.read, write=letters.ready, name="letters")
        outcome = machine.run(timeout=30)
    print(f"{letters.interrupts} interrupts; {outcome.reason}, with exit status {outcome.status}")


if __name__ == "__main__":
    main()
