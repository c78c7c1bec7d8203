"""One edit of a kernel's ``pgtable.c``, and the kernel that it makes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.tree import PGTABLE


@dataclass(frozen=True)
class Patch:
    """In ``function`` of pgtable.c, ``old`` (a pattern, found ``times`` times) becomes ``new``."""

    name: str
    function: str
    old: str
    new: str
    times: int = 1

    def apply(self, source: str) -> str:
        """The patched text.  Raises ``ValueError`` when the function is not there, or the place not so often."""
        body = re.search(rf"^[^\n;]*\b{self.function}\([^;{{]*\)\n{{.*?^}}", source, re.MULTILINE | re.DOTALL)
        if body is None:
            raise ValueError(f"there is no function {self.function}")
        patched, times = re.subn(self.old, self.new, body[0], flags=re.DOTALL)
        if times != self.times:
            raise ValueError(f"{self.old} is in {self.function} {times} times, not {self.times}")
        return source[: body.start()] + patched + source[body.end() :]

    def put_on(self, kernel: Kernel) -> Kernel:
        """The kernel with this fault."""
        text = {**kernel.tree.text, PGTABLE: self.apply(kernel.tree.text[PGTABLE])}
        return Kernel(self.name, replace(kernel.tree, text=text), kernel.generation, kernel.cache)
