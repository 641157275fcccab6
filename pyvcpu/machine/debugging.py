"""What a machine keeps ready for whoever debugs it; nothing of it is loaded before that."""

from __future__ import annotations

from ..errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import os
    from collections.abc import Callable, Sequence

    from ..symbols import Symbols
    from ..vcpu.context import Debugger, KvmContext
    from ..vcpu.core import Cpu
    from ..vcpu.handle import Control

    Image = bytes | bytearray | str | os.PathLike[str]

ELF = b"\x7fELF"


def debugger_maker(control: Control, context: KvmContext, cpus: Sequence[Cpu]) -> Callable[[], Debugger]:
    """Return what makes the debugger of a machine, once; it does not know the machine, which could not be dropped."""

    def make() -> Debugger:
        from ..debug.debugger import Debugger

        with context.debugger_lock:
            context.debugger = context.debugger or Debugger(control, context, cpus)
            return context.debugger

    return make


class GuestSymbols:
    """The symbols of a machine's guest, read when they are first asked for. Any thread."""

    __slots__ = ("_content", "_path", "_symbols")

    def __init__(self) -> None:
        self._content = b""
        self._path: str | os.PathLike[str] | None = None
        self._symbols: Symbols | None = None

    def set_image(self, content: bytes, path: str | os.PathLike[str] | None) -> None:
        """Take the image that was loaded, where it is an ELF file; of a file no more than its name is kept."""
        self._symbols = None
        self._content, self._path = b"", None
        if content[:4] == ELF:
            self._content, self._path = (content, None) if path is None else (b"", path)

    def get(self) -> Symbols:
        """Return them; none where the image has none, or its file is gone."""
        from ..symbols import Symbols, read

        if self._symbols is None:
            try:
                content = self._content if self._path is None else _read(self._path)
                self._symbols = read(content) if content[:4] == ELF else Symbols()
            except (ImageError, OSError):
                self._symbols = Symbols()
        return self._symbols

    def add(self, source: Image) -> None:
        """Add those of an ELF file or a System.map. Raise ImageError, OSError."""
        from .. import symbols

        content = bytes(source) if isinstance(source, (bytes, bytearray)) else _read(source)
        self.get().add(symbols.from_elf(content) if content[:4] == ELF else symbols.from_map(content))

    def __call__(self) -> Symbols:
        return self.get()


def _read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()
