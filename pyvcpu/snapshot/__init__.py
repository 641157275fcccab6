"""Snapshots: the whole state of a machine as plain data, in memory or in a file; restored, cloned, reset to.

The machine is known here by what target.py says of it. docs/snapshots.md has the file's format.
"""

from __future__ import annotations

from .data import Snapshot as Snapshot
from .data import SnapshotError as SnapshotError
