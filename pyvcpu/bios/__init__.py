"""A BIOS in Python: the interrupts that a real-mode guest makes are served by functions of this package.

The guest's memory holds stubs, one for each interrupt, whose OUT leaves the guest. bios.Bios has the handlers.
"""

from __future__ import annotations

from .bios import Bios as Bios
from .call import AGAIN as AGAIN
from .call import WAIT as WAIT
from .call import Call as Call
