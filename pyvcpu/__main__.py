"""`python -m pyvcpu`."""

from __future__ import annotations

import gc
import os
import sys

if __name__ == "__main__":
    gc.disable()  # there is nothing to collect among the modules that are loaded now: 1.5 ms. A run enables it again
    try:
        from .cli import main

        status = main()
    except KeyboardInterrupt:  # before the command could catch it
        status = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # closed, or its reader has gone
    # The kernel takes everything back; the interpreter's own tidying up would take 2 ms, a tenth of a small boot.
    os._exit(status)
