"""The virtio entropy device. Source: VIRTIO 1.2, section 5.4."""

from __future__ import annotations

import os

from .virtio import RequestDevice

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .queue import Chain

AT_MOST = 4096  # bytes for one request: a driver that wants more asks again


class VirtioRng(RequestDevice):
    """Fill the driver's buffers with random bytes of the host's."""

    name = "entropy"
    device_id = 4

    def serve(self, index: int, chain: Chain) -> int:
        """Fill the first bytes of the chain."""
        written = 0
        for view in chain.writable:
            length = min(len(view), AT_MOST - written)
            view[:length] = os.urandom(length)
            written += length
        return written
