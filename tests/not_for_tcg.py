"""Tests that need a real KVM, each with the reason why the software one is none for them."""

from __future__ import annotations

from fnmatch import fnmatch

# Patterns of test ids, as pytest prints them.
REASONS: dict[str, str] = {}


def not_for_tcg(nodeid: str) -> str | None:
    """Return why the test cannot run on the software KVM, None where it can."""
    return next((reason for pattern, reason in REASONS.items() if fnmatch(nodeid, pattern)), None)
