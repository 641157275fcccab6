"""The two 8259A interrupt controllers of a PC (Intel 8259A data sheet), with the ELCR registers of the ISA bridge.

All state is guarded by the lock of Irqs, which calls in, and which is called back when an interrupt is acknowledged.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .routes import Irqs

STATE = Struct("<16B")  # kvm_pic_state
FIELDS = (
    "last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_reg_select", "poll", "special_mask",
    "init_state", "auto_eoi", "rotate_on_auto_eoi", "special_fully_nested_mode", "init4", "elcr", "elcr_mask",
)  # fmt: skip
MASTER, SLAVE = 0, 1
CASCADE = 2
PORTS = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)


class Chip:
    """One 8259A. Its fields are those of kvm_pic_state."""

    __slots__ = (*FIELDS, "number", "pair")

    last_irr: int
    irr: int
    imr: int
    isr: int
    priority_add: int
    irq_base: int
    read_reg_select: int
    poll: int
    special_mask: int
    init_state: int
    auto_eoi: int
    rotate_on_auto_eoi: int
    special_fully_nested_mode: int
    init4: int
    elcr: int
    elcr_mask: int

    def __init__(self, pair: Pic, number: int) -> None:
        self.pair, self.number = pair, number
        for name in FIELDS:
            setattr(self, name, 0)
        self.elcr_mask = (0xF8, 0xDE)[number]

    def set_line(self, pin: int, level: bool) -> int:
        """Set a line's level. Returns 1 where it raises a request, 0 where there was one, -1 where it is masked."""
        bit = 1 << pin
        result = 1
        if self.elcr & bit:  # level-triggered
            if level:
                result = int(not self.irr & bit)
                self.irr |= bit
                self.last_irr |= bit
            else:
                self.irr &= ~bit
                self.last_irr &= ~bit
        elif level:
            if not self.last_irr & bit:
                result = int(not self.irr & bit)
                self.irr |= bit
            self.last_irr |= bit
        else:
            self.last_irr &= ~bit
        return -1 if self.imr & bit else result

    def _rank(self, bits: int) -> int:
        """Return how far the most urgent of some lines is from the top; 8 where there is none."""
        for rank in range(8):
            if bits & 1 << (rank + self.priority_add & 7):
                return rank
        return 8

    def request(self) -> int:
        """Return the line that is to be served next, -1 for none."""
        rank = self._rank(self.irr & ~self.imr)
        if rank == 8:
            return -1
        serving = self.isr
        if self.special_mask:
            serving &= ~self.imr
        if self.special_fully_nested_mode and self.number == MASTER:
            serving &= ~(1 << CASCADE)
        return rank + self.priority_add & 7 if rank < self._rank(serving) else -1

    def acknowledge(self, pin: int) -> None:
        """Begin to serve a line."""
        self.isr |= 1 << pin
        if not self.elcr & 1 << pin:
            self.irr &= ~(1 << pin)
        if self.auto_eoi:
            if self.rotate_on_auto_eoi:
                self.priority_add = pin + 1 & 7
            self.end(pin)

    def end(self, pin: int) -> None:
        """End the serving of a line."""
        self.isr &= ~(1 << pin)
        self.pair.ended(self.number, pin)

    def write(self, port: int, value: int) -> None:
        """Write the command port (0) or the data port (1)."""
        if port:
            self._write_data(value)
        elif value & 0x10:  # ICW1
            self._reset(value)
        elif value & 8:  # OCW3
            if value & 4:
                self.poll = 1
            if value & 2:
                self.read_reg_select = value & 1
            if value & 0x40:
                self.special_mask = value >> 5 & 1
        else:
            self._write_ocw2(value)

    def _reset(self, value: int) -> None:
        self.init4 = value & 1
        self.last_irr = 0
        self.irr &= self.elcr
        self.imr = 0
        self.priority_add = self.special_mask = self.read_reg_select = 0
        if not self.init4:
            self.special_fully_nested_mode = self.auto_eoi = 0
        self.init_state = 1
        for pin in range(8):
            if self.isr & 1 << pin:
                self.end(pin)

    def _write_ocw2(self, value: int) -> None:
        command, pin = value >> 5, value & 7
        if command in (0, 4):
            self.rotate_on_auto_eoi = command >> 2
        elif command in (1, 5):
            rank = self._rank(self.isr)
            if rank != 8:
                pin = rank + self.priority_add & 7
                if command == 5:
                    self.priority_add = pin + 1 & 7
                self.end(pin)
        elif command == 3:
            self.end(pin)
        elif command == 6:
            self.priority_add = pin + 1 & 7
        elif command == 7:
            self.priority_add = pin + 1 & 7
            self.end(pin)

    def _write_data(self, value: int) -> None:
        state = self.init_state
        if state == 0:
            opened = self.imr & ~value
            self.imr = value
            if opened:
                self.pair.unmasked()
        elif state == 1:
            self.irq_base = value & 0xF8
            self.init_state = 2
        elif state == 2:
            self.init_state = 3 if self.init4 else 0
        else:
            self.special_fully_nested_mode = value >> 4 & 1
            self.auto_eoi = value >> 1 & 1
            self.init_state = 0

    def read(self, port: int) -> int:
        """Read the command port (0) or the data port (1)."""
        if self.poll:
            self.poll = 0
            pin = self.request()
            if pin < 0:
                return 7
            self.acknowledge(pin)
            if self.auto_eoi == 0:
                self.end(pin)
            return pin | 0x80
        if port:
            return self.imr
        return self.isr if self.read_reg_select else self.irr


class Pic:
    """The pair. `output` tells whether it asks for an interrupt."""

    def __init__(self, irqs: Irqs) -> None:
        self._irqs = irqs
        self.chips = (Chip(self, MASTER), Chip(self, SLAVE))
        self.output = False

    # Lines and acknowledgement, under the lock.

    def set_line(self, pin: int, level: bool) -> int:
        """Set the level of line 0 to 15."""
        result = self.chips[pin >> 3].set_line(pin & 7, level)
        self.update()
        return result

    def update(self) -> None:
        """Work out the output after a change."""
        master, slave = self.chips
        if slave.request() >= 0:  # each look at it is a new edge, as in KVM: with auto-EOI its output never falls
            master.set_line(CASCADE, True)
            master.set_line(CASCADE, False)
        before, self.output = self.output, master.request() >= 0
        if self.output and not before:
            self._irqs.pic_raised()

    def acknowledge(self) -> int:
        """Begin to serve the most urgent line; returns its vector. Line 7 where there is none any more."""
        master, slave = self.chips
        pin = master.request()
        if pin < 0:
            vector = master.irq_base + 7
        elif pin == CASCADE:
            below = slave.request()
            master.acknowledge(CASCADE)
            if below < 0:
                vector = slave.irq_base + 7
            else:
                slave.acknowledge(below)
                vector = slave.irq_base + below
        else:
            master.acknowledge(pin)
            vector = master.irq_base + pin
        self.output = False
        self.update()
        return vector

    def ended(self, chip: int, pin: int) -> None:
        """Tell who waits for the end of an interrupt."""
        self._irqs.acknowledged(chip, pin)

    def unmasked(self) -> None:
        """Tell that lines were unmasked."""
        self._irqs.unmasked()

    # Ports, on a vCPU's thread.

    def port_read(self, port: int, size: int) -> int:
        """Read a port; KVM's know single bytes only, others read as 0."""
        with self._irqs.lock:
            if size != 1:
                return 0
            if port >= 0x4D0:
                return self.chips[port & 1].elcr
            value = self.chips[port >> 7].read(port & 1)
            self.update()
            return value

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write a port."""
        if size != 1:
            return
        with self._irqs.lock:
            if port >= 0x4D0:
                chip = self.chips[port & 1]
                chip.elcr = value & chip.elcr_mask
            else:
                self.chips[port >> 7].write(port & 1, value)
            self.output = False  # a request that is still there counts as a new one
            self.update()

    # KVM_GET_IRQCHIP, KVM_SET_IRQCHIP.

    def get(self, number: int) -> bytes:
        """Return kvm_pic_state."""
        chip = self.chips[number]
        return STATE.pack(*(getattr(chip, name) for name in FIELDS))

    def set(self, number: int, data: bytes) -> None:
        """Take kvm_pic_state."""
        chip = self.chips[number]
        for name, value in zip(FIELDS, STATE.unpack(data[:16]), strict=True):
            setattr(chip, name, value)
        chip.priority_add &= 7
        chip.init_state &= 3
        self.output = False
        self.update()
