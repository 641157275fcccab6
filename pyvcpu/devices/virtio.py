"""What virtio devices have in common, whatever the transport. Source: VIRTIO 1.2, section 2."""

from __future__ import annotations

import threading

from .device import checked

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Sequence
    from typing import Protocol

    from .device import State
    from .queue import Chain, Memory, Queue

    class Interrupt(Protocol):
        """What a device tells its driver, from any thread; nothing after a reset of the device."""

        @property
        def features(self) -> int:
            """What the driver has accepted of the features offered."""

        def used(self, queue: Queue) -> None:
            """Say that chains were added to the used ring, unless the driver does not want to hear of it."""

        def config_changed(self) -> None:
            """Say that the configuration has changed."""

        def needs_reset(self) -> None:
            """Say that the device can do nothing more until a reset: the driver broke a rule."""

        def wanted_still(self) -> bool:
            """Return whether the machine is to stand still: begin no more requests, and return from notified()."""

    class VirtioDevice(Protocol):
        """A kind of device, without registers or interrupts; what a transport drives.

        The transport makes one call of activate(), reset() and restore() at a time, with no lock held that others need.
        """

        @property
        def name(self) -> str: ...
        @property
        def device_id(self) -> int: ...
        @property
        def features(self) -> int:
            """The feature bits of this kind of device: 0 to 23, and 50 to 127."""

        @property
        def queues(self) -> int:
            """How many queues it has."""

        def activate(self, queues: Sequence[Queue], memory: Memory, interrupt: Interrupt) -> None:
            """Begin to work: the driver is ready. Chains may be popped from now on, in any thread."""

        def notified(self, index: int) -> bool | None:
            """Serve what a queue has available; any thread, also several at once, and before activate().

            Return True when chains are left that it could serve now: it is called again soon, but after others, and not
            while the machine stands still. Raise QueueError for what no driver may send: the device then needs a reset.
            """

        def reset(self) -> None:
            """Forget what activate() gave; no memory of the guest is touched once this returns.

            It may take as long as one request. The queues are closed already.
            """

        def read_config(self, offset: int, size: int) -> bytes:
            """Return up to `size` bytes of the device-specific configuration; there are zeros behind its end."""

        def write_config(self, offset: int, data: bytes) -> None:
            """Write the configuration, where the driver may; ignore it elsewhere."""

        def state(self) -> State:
            """Return what the guest can see of it, as Device.state() does, without its queues."""

        def restore(self, data: object) -> None:
            """Check `data`, as Device.restore() does, and then do as reset() and take it over; activate() follows."""

    class Transport(Protocol):
        """The registers and the interrupt line of a device, as its DriverSide uses them."""

        def interrupt(self, driver: DriverSide, reason: int) -> None: ...
        def needs_reset(self, driver: DriverSide) -> None: ...
        def wanted_still(self) -> bool: ...


# Device status (section 2.1)
ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
DEVICE_NEEDS_RESET = 64
FAILED = 128

# Feature bits that concern the transport and the rings (section 6)
F_INDIRECT_DESC = 1 << 28
F_VERSION_1 = 1 << 32

# Why a driver is interrupted (the bits of the interrupt status)
INTERRUPT_USED = 1  # something is in a used ring
INTERRUPT_CONFIG = 2  # the configuration, or the device status, has changed


class DriverSide:
    """What a device tells its driver, from its activation to its reset: an Interrupt, for any transport."""

    __slots__ = ("_transport", "features")

    def __init__(self, transport: Transport, features: int) -> None:
        self._transport = transport
        self.features = features

    def used(self, queue: Queue) -> None:
        """Interrupt the driver for what was added to the used ring, if it wants that."""
        if queue.wants_interrupt():
            self._transport.interrupt(self, INTERRUPT_USED)

    def config_changed(self) -> None:
        """Interrupt the driver for a change of the configuration."""
        self._transport.interrupt(self, INTERRUPT_CONFIG)

    def needs_reset(self) -> None:
        """Break the device."""
        self._transport.needs_reset(self)

    def wanted_still(self) -> bool:
        """Return whether the machine is to stand still."""
        return self._transport.wanted_still()


class RequestDevice:
    """A device whose requests are done one after the other, each to its end: serve() is all that a kind of it adds.

    Between two requests it looks whether the machine is to stand still. Its configuration never changes.

    Threads: `_working` is held for one request at a time, so that reset() waits for one at most: the queues are closed
    by then, and there is no next.
    """

    name = ""
    device_id = 0
    features = 0
    config = b""
    queues = 1

    def __init__(self) -> None:
        self._working = threading.Lock()
        self._active: tuple[Sequence[Queue], Interrupt] | None = None

    def serve(self, index: int, chain: Chain) -> int:
        """Do one request and return how many bytes of its writable buffers were written, from the first on.

        Raise QueueError for what no driver may send.
        """
        raise NotImplementedError

    def served(self) -> None:
        """Do what is to be done after a request, without a lock; nothing here."""

    def activate(self, queues: Sequence[Queue], memory: Memory, interrupt: Interrupt) -> None:
        """Begin to work."""
        self._active = queues, interrupt

    def notified(self, index: int) -> bool:
        """Serve as many chains as the queue can hold; return whether there are more."""
        active = self._active
        if active is None:
            return False
        queue, interrupt = active[0][index], active[1]
        for _ in range(queue.size):
            with self._working:
                chain = queue.pop()
                if chain is None:
                    return False
                queue.add_used(chain.head, self.serve(index, chain))
            interrupt.used(queue)
            self.served()
            if interrupt.wanted_still():
                break
        return not queue.is_empty()

    def reset(self) -> None:
        """Wait for the request under way, and forget the queues."""
        with self._working:
            self._active = None

    def read_config(self, offset: int, size: int) -> bytes:
        """Return a part of `config`."""
        return self.config[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Ignore it."""

    def state(self) -> State:
        """Return an empty dict: between two requests such a device has no state."""
        return {}

    def restore(self, data: object) -> None:
        """Check that `data` is what state() gave."""
        checked(self.name, {}, data)
        self.reset()
