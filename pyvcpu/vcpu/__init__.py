"""The life of a vCPU: one thread per processor, and the handle by which other threads command it."""

from __future__ import annotations

from .handle import Vcpu as Vcpu
from .handle import current_cpu as current_cpu
from .states import Command as Command
from .states import State as State
