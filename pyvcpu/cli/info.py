"""`pyvcpu info`: what this host's KVM can do. (Options: see boot.py, which declares its own in the OPTIONS table.)"""

from __future__ import annotations

from types import SimpleNamespace

from .options import KVM_OPTION, Option

HELP = "tell what this host's KVM can do"
DESCRIPTION = ""
EPILOG = ""
OPTIONS = (Option("--json", "print JSON for programs"), KVM_OPTION)


def run(options: SimpleNamespace) -> int:
    return 0
