"""How much memory the contents of a file may take: a stated bound, held before anything is unpacked or multiplied.

A file is made by whoever made it: what it claims to hold is compared with the bound first, and believed afterwards.
"""

from __future__ import annotations

from inspector.findings import BadInput

DEFAULT = 2 << 30
"""Bytes.  A capture of 2**16 full table pages and a vmlinux with debug information of a whole kernel fit."""


class Budget:
    """Of ``most`` bytes for one file, what is ``left``."""

    def __init__(self, most: int = DEFAULT) -> None:
        self.most = most
        self.left = most

    def spend(self, size: int, what: str) -> None:
        """Set ``size`` bytes aside for ``what``.  Raises `BadInput` when not so many are left."""
        if size > self.left:
            raise BadInput(f"{what} would take {_text(size)} of memory: {self.rule}")
        self.left -= size

    @property
    def rule(self) -> str:
        """The bound and its option in words, for the end of a sentence."""
        return f"what a file holds may take {_text(self.most)} (raise that with --max-memory)"


def _text(size: int) -> str:
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if size >> shift:
            return f"{size / (1 << shift):.3g} {unit}" if size >> shift < 1000 else f"{size >> shift} {unit}"
    return f"{size} bytes"
