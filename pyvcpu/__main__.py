"""`python -m pyvcpu`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from .cli import main

        status = main()
    except KeyboardInterrupt:  # before the command could catch it
        status = 130
    sys.exit(status)
