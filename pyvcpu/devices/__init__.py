"""Devices of the machine: they know bytes and callables, and nothing of KVM.

A device has a `name`, and what a machine needs of it to save and reset it (device.py): `reset()`, `state()` and
`restore(data)`. It has `read(offset, size) -> bytes` and `write(offset, data)`, with offsets counted from the start
of its range, and is put on an address space by `Bus.attach`. These two run in the thread of the vCPU that made the
access, several at once; whatever a guest writes, they neither raise nor take unbounded time or memory. No lock is held
while a device calls what it was given (output, interrupt lines), but for the IOAPIC, which says so.
"""
