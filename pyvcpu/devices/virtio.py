"""What virtio devices have in common, whatever the transport. Source: VIRTIO 1.2, section 2."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Protocol

    from .queue import Chain

    class VirtioDevice(Protocol):
        """What a transport drives: a kind of device, without registers, rings or interrupts."""

        @property
        def name(self) -> str: ...
        @property
        def device_id(self) -> int: ...
        @property
        def features(self) -> int:
            """The feature bits of this kind of device: 0 to 23, and 50 to 127."""

        @property
        def config(self) -> bytes:
            """The device-specific configuration, which never changes."""

        @property
        def queues(self) -> int: ...
        def serve(self, queue: int, chain: Chain) -> int:
            """Do one request and return how many bytes of its writable buffers were written, from the first on.

            Called with the transport's lock held. Raise QueueError for what no driver may send.
            """


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
