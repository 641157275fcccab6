"""Breakpoints and watchpoints of a machine, and the method by which each is noticed."""

from __future__ import annotations

from ctypes import addressof
from itertools import islice
from struct import Struct

from ..errors import PyvcpuError
from ..kvm.abi import debug as abi
from .methods import ACCESS, EXECUTE, REGISTERS, WRITE, dr7

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterator

    from ..vcpu import Vcpu
    from .methods import Methods

    Handler = Callable[[Vcpu], object]

REGISTER, SOFTWARE, COMPARE = "debug register", "software", "single steps, which is slow"
COMPARE_MEMORY = "single steps, which is slow, and sees a write only where it changes the value"
CONTROL = Struct("<II8Q")  # struct kvm_guest_debug: control, pad, debug registers 0 to 7
INT3 = b"\xcc"
MOST_COMPARED = 4096  # bytes of a watchpoint that are looked at after each instruction
NOTHING = CONTROL.pack(0, 0, *[0] * 8)


class DebugError(PyvcpuError, RuntimeError):
    """A breakpoint or step that this host, or the machine as it is, does not allow."""


class Breakpoint:
    """One breakpoint or watchpoint of a program's: what Machine.break_at() and watch() return.

    `handler`, called with the vCPU on its thread, can be replaced at any time; None stops each time. It stops the
    machine by returning False; after anything else the guest goes on. `hits` counts how often it was reached, `method`
    says how it works. `owner`: None, or the debugger that set it.
    """

    __slots__ = ("_remove", "address", "handler", "hits", "length", "method", "owner", "rule")

    def __init__(
        self, rule: int, address: int, length: int, handler: Handler | None = None, owner: object = None
    ) -> None:
        self.rule = rule
        self.address = address
        self.length = length
        self.handler = handler
        self.owner = owner
        self.hits = 0
        self.method = ""
        self._remove: Callable[[Breakpoint], None] | None = None

    def remove(self) -> None:
        """Take it away; removing again does nothing. Any thread."""
        remove, self._remove = self._remove, None
        if remove is not None:
            remove(self)

    def __repr__(self) -> str:
        what = "breakpoint" if self.rule == EXECUTE else "watchpoint"
        return f"<{what} at {self.address:#x}, {self.hits} hits, by {self.method or 'nothing: removed'}>"


class Site:
    """A place where vCPUs stop: the breakpoints there, and the `method`. `slots`: the debug registers that it has."""

    __slots__ = ("address", "length", "method", "original", "rule", "slots", "users")

    def __init__(self, rule: int, address: int, length: int) -> None:
        self.rule = rule
        self.address = address
        self.length = length
        self.method = ""
        self.slots: list[tuple[int, int, int]] = []  # number, address, length
        self.users: list[Breakpoint] = []
        self.original = b""  # what int3 overwrote


class Request:
    """The argument of a KVM_SET_GUEST_DEBUG, ready to be used: its bytes, and where they are."""

    __slots__ = ("_structure", "address", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._structure = abi.kvm_guest_debug.from_buffer_copy(data)
        self.address = addressof(self._structure)


class Points:
    """All of them; the caller's lock guards it. `at`: breakpoints by address, `by_slot`: sites by debug register.

    `compare`: sites that are looked for after every single step.
    """

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._sites: dict[tuple[int, int, int], Site] = {}
        self._free = list(range(REGISTERS))
        self.at: dict[int, Site] = {}  # breakpoints by address
        self.by_slot: dict[int, Site] = {}
        self.compare: list[Site] = []
        self.software: list[Site] = []
        self._requests: dict[tuple[bool, int | None, bool], Request] = {}  # those that were needed so far

    def __iter__(self) -> Iterator[Breakpoint]:
        for site in self._sites.values():
            yield from site.users

    def add(self, point: Breakpoint, *, software: bool) -> Site:
        """Set a breakpoint; raise DebugError where nothing works. `software`: int3 may be used."""
        key = point.rule, point.address, point.length
        site = self._sites.get(key)
        if site is None:
            site = Site(*key)
            self._choose(site, software)
            self._sites[key] = site
            if site.rule == EXECUTE:
                self.at[site.address] = site
        self._requests = {}
        site.users = [*site.users, point]
        point.method = site.method
        return site

    def _choose(self, site: Site, software: bool) -> None:
        works = self._methods
        parts = (
            list(islice(_aligned(site.address, site.length), REGISTERS + 1))
            if site.rule != EXECUTE
            else [(site.address, 1)]
        )
        if (works.execute if site.rule == EXECUTE else works.watch) and len(parts) <= len(self._free):
            site.method = REGISTER
            for address, length in parts:
                slot = self._free.pop(0)
                site.slots.append((slot, address, length))
                self.by_slot[slot] = site
        elif site.rule == EXECUTE and works.software and software:
            site.method = SOFTWARE
            self.software.append(site)
        elif works.step and (site.rule == EXECUTE or (site.rule == WRITE and site.length <= MOST_COMPARED)):
            site.method = COMPARE if site.rule == EXECUTE else COMPARE_MEMORY
            self.compare = [*self.compare, site]
        elif site.rule == EXECUTE:
            raise DebugError("this host's KVM reports no breakpoints and no single steps")
        elif works.watch:
            raise DebugError(f"the {REGISTERS} debug registers are in use, or too few for {site.length} bytes")
        else:
            raise DebugError("this host's KVM reports no watchpoints, and reads cannot be seen in any other way")

    def discard(self, point: Breakpoint) -> Site | None:
        """Remove a breakpoint; return its site if no other is there."""
        key = point.rule, point.address, point.length
        site = self._sites.get(key)
        if site is None or point not in site.users:
            return None
        site.users = [user for user in site.users if user is not point]
        point.method = ""
        if site.users:
            return None
        self._requests = {}
        del self._sites[key]
        if self.at.get(site.address) is site:
            del self.at[site.address]
        for slot, _, _ in site.slots:
            del self.by_slot[slot]
            self._free.append(slot)
        self._free.sort()
        self.compare = [other for other in self.compare if other is not site]
        if site in self.software:
            self.software.remove(site)
        return site

    def control(self, single: bool, over: int | None, block_irq: bool) -> Request:
        """Return what to tell KVM of a vCPU. `over`: the address of a breakpoint that does not count now."""
        key = single, over if over in self.at else None, block_irq
        request = self._requests.get(key)
        if request is None:
            request = self._requests[key] = Request(self._control(single, over, block_irq))
        return request

    def _control(self, single: bool, over: int | None, block_irq: bool) -> bytes:
        flags, registers = 0, [0] * 8
        for slot, site in self.by_slot.items():
            if site.rule == EXECUTE and site.address == over:
                continue
            flags |= abi.KVM_GUESTDBG_USE_HW_BP
            address, length = next((at, size) for number, at, size in site.slots if number == slot)
            registers[slot] = address
            registers[7] |= dr7(slot, site.rule, length)
        if self.software:
            flags |= abi.KVM_GUESTDBG_USE_SW_BP
        if single:
            flags |= abi.KVM_GUESTDBG_SINGLESTEP | (abi.KVM_GUESTDBG_BLOCKIRQ if block_irq else 0)
        if not flags:
            return NOTHING
        return CONTROL.pack(flags | abi.KVM_GUESTDBG_ENABLE, 0, *registers)


def single(*, block_irq: bool) -> Request:
    """Return what to tell KVM for single steps, without any breakpoint."""
    flags = abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP
    return Request(CONTROL.pack(flags | (abi.KVM_GUESTDBG_BLOCKIRQ if block_irq else 0), 0, *[0] * 8))


def _aligned(address: int, length: int) -> Iterator[tuple[int, int]]:
    """Split a range into parts that debug registers can watch: 1, 2, 4 or 8 bytes, each at a multiple of its size."""
    end = address + length
    while address < end:
        size = next(size for size in (8, 4, 2, 1) if address % size == 0 and address + size <= end)
        yield address, size
        address += size


def rule_of(kinds: str) -> int:
    """Return the rule for "r", "w" or "rw"; a debug register cannot watch for reads alone."""
    if kinds not in ("r", "w", "rw"):
        raise ValueError(f'a watchpoint is for "r", "w" or "rw", not {kinds!r}')
    return WRITE if kinds == "w" else ACCESS
