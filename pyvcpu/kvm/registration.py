"""What a VM was told to watch: an object that takes it back, best with `with`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Self


class Registration:
    """Something registered with a VM, until close() or the end of the VM. Dropping the object changes nothing."""

    __slots__ = ("_undo", "what")

    def __init__(self, what: str, undo: Callable[[], object]) -> None:
        self.what = what
        self._undo: Callable[[], object] | None = undo

    def close(self) -> None:
        """Take it back; doing so again does nothing."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.what}{'' if self._undo else ', taken back'}>"
