"""Tracker: which pages of a machine have changed since it was restored."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .image import Image


class Tracker:
    """Stub."""

    def rewind(self, image: Image) -> bool:
        """Stub."""
        return False
