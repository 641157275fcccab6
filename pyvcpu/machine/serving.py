"""Serving: the side of a machine that serves what its guest asks for, with handlers of the user's."""

from __future__ import annotations

import threading

from ..addresses import AddressSpace
from ..bus import Bus, Region
from ..errors import PyvcpuError
from ..vcpu import Vcpu
from ..vcpu.context import KvmContext
from .running import Running

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..exits import ExitEvent
    from ..vcpu.context import Probe
    from .coalesced import Coalescer


class Serving(Running):
    """Handlers of ports, MMIO and exits, and probes: see Machine, which makes what they are put into."""

    addresses: AddressSpace
    ports: Bus
    mmio: Bus
    context: KvmContext

    def __init__(self) -> None:
        super().__init__()
        # Not `start_lock`: a handler may ask for it while the holder of that lock waits for the handler's vCPU.
        self._coalescer_lock = threading.Lock()
        self._coalescer: Coalescer | None = None

    def on_port(
        self,
        port: int,
        length: int | None = None,
        *,
        read: Callable[..., bytes | int] | None = None,
        write: Callable[..., object] | None = None,
        name: str = "handler",
        coalesce: bool = False,
    ) -> Region:
        """Serve `port`: `read(vcpu, size)` returns `size` bytes or a number, `write(vcpu, data)` takes bytes.

        With a `length`, serve as many ports from this one on: `read(vcpu, offset, size)`, `write(vcpu, offset, data)`,
        offsets from `port` on; an access belongs to the port of its first byte.

        They run on the thread of the vCPU that made the access; what they raise stops the machine and comes out of
        run(). A string instruction calls once per element. Raise ConfigError when the port is taken. Any thread.

        `coalesce`: KVM collects the writes, which is four times as fast as an exit for each. They are served before
        any later exit, within 20 ms, and at the end. `write` is then called with None for the vCPU, and once for
        several writes in turn, their bytes joined.
        """
        for handler in (read, write):
            if handler is not None and not callable(handler):
                raise TypeError(f"a handler of port {port!r} must be callable, not {handler!r}")
        if length is None:
            region = self.ports.claim(
                port,
                1,
                read=None if read is None else lambda vcpu, offset, size: read(vcpu, size),
                write=None if write is None else lambda vcpu, offset, data: write(vcpu, data),
                direct=write,
                name=name,
            )
        else:
            region = self.ports.claim(port, length, read=read, write=write, name=name)
        if coalesce:
            self._coalesce(port, length or 1, region, pio=True)
        return region

    def on_mmio(
        self,
        address: int,
        length: int,
        *,
        read: Callable[[Vcpu, int, int], bytes | int] | None = None,
        write: Callable[[Vcpu, int, bytes], object] | None = None,
        name: str = "handler",
        coalesce: bool = False,
    ) -> Region:
        """Serve `length` bytes of address space from guest physical `address` on, which is not RAM.

        `read(vcpu, offset, size)`, `write(vcpu, offset, data)` and `coalesce` otherwise as in on_port(), but that
        each write is one call.
        """
        region = self.addresses.claim_mmio(address, length, read=read, write=write, name=name)
        if coalesce:
            self._coalesce(address, length, region, pio=False)
        return region

    def _coalesce(self, address: int, length: int, region: Region | None, *, pio: bool) -> None:
        """Let KVM collect the writes to a range; where it cannot, give `region` back and raise its ConfigError."""
        from .coalesced import Coalescer

        with self._coalescer_lock:
            coalescer = self._coalescer = self._coalescer or Coalescer(self.context, self.control)
        try:
            coalescer.add(address, length, pio=pio)
        except PyvcpuError:
            if region is not None:
                (self.ports if pio else self.mmio).release(region)
                raise

    def on_exit(self, reason: int, handler: Callable[[Vcpu, ExitEvent], object]) -> None:
        """Call `handler(vcpu, exit)` at exits of `reason` (kvm.abi.Exit), before anything else looks at them.

        True from it: dealt with, run on. Anything else: go on as without it. Before start() only.
        """
        self._not_started("register exit handlers")
        if not callable(handler):
            raise TypeError(f"an exit handler must be callable, not {handler!r}")
        self.context.exit_handlers[int(reason)] = handler

    def observe(self, probe: Probe) -> None:
        """Let `probe` see what the vCPUs do: a Stats or Trace. Before start() only."""
        self._not_started("observe() it")
        probe.attach(len(self.vcpus))
        self.context.probe = probe
        for vcpu in self.vcpus:
            vcpu.probe = probe
