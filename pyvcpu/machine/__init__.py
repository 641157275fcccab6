"""A machine: memory, processors and the devices of a small PC, wired together, and how it runs."""

from __future__ import annotations

from .host import read_image as read_image
from .machine import Machine as Machine
