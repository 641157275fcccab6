"""The functions of the module signal, whose numbers are plain here.

`signal` makes enumerations of them, and to load what that takes is a tenth of the start of a small boot.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import signal
else:
    try:
        import _signal as signal
    except ImportError:
        import signal

__all__ = ["signal"]
