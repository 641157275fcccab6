"""The exceptions of this package: one family, whose messages stand on their own.

A caller that catches PyvcpuError gets every error a user can cause; each also derives from the built-in
exception that fits it. A message says in words what must hold, what was given and, where it can be guessed,
what was meant. Mistakes in the host program itself (a handler that returns the wrong type) raise plain
TypeError or ValueError.
"""


class PyvcpuError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(PyvcpuError, ValueError):
    """The machine asked for cannot be built: sizes, ranges or options that contradict each other."""


class ImageError(PyvcpuError, ValueError):
    """The image cannot be booted: of no known format, damaged, or too big for the guest's memory."""


class StateError(PyvcpuError, RuntimeError):
    """The state of a vCPU or machine does not allow the command."""
