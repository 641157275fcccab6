"""Fixtures of the KVM tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], Path]:
    """Give a function that writes an image to a file and returns its path."""

    def write(code: bytes) -> Path:
        path = tmp_path / "image.bin"
        path.write_bytes(code)
        return path

    return write
