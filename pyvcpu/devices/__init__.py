"""Devices of the machine: they know bytes and callables, and nothing of KVM.

A device has a `name`, `read(offset, size) -> bytes` and `write(offset, data)`, with offsets counted from the
start of its range, and is put on an address space by `Bus.attach`. Its methods run in the thread of the vCPU
that made the access, several at once; whatever a guest writes, they neither raise nor take unbounded time or
memory.
"""
