"""A kernel under test: its files, what a report calls it, the generation that the model takes for it, its libraries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspector.crosscheck.build import Variant, build
from inspector.crosscheck.harness import Library
from inspector.crosscheck.tree import Tree


@dataclass(frozen=True)
class Kernel:
    """``name`` is for reports; ``generation`` a label of `inspector.generations`; ``cache`` keeps what was built.

    With ``coverage`` its libraries count for gcov what runs.
    """

    name: str
    tree: Tree
    generation: str
    cache: Path
    coverage: bool = False
    _libraries: dict[Variant, Library] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """A kernel can be sent to another process, which loads the libraries it needs itself."""
        return {**self.__dict__, "_libraries": {}}

    @property
    def built(self) -> list[str]:
        """The variants that were used in this process: ``4k``, ``4k-hyp``."""
        return [variant.name for variant in self._libraries]

    def library(
        self,
        granule: str = "4k",
        *,
        pa_bits: int | None = None,
        hyp: bool = False,
        every_access: bool = False,
        sanitize: bool = False,
    ) -> Library:
        """The library of that flavour, built when first asked for.  Raises `Untestable` when it does not compile."""
        variant = Variant(granule, pa_bits, hyp, every_access, self.coverage, sanitize)
        if variant not in self._libraries:
            self._libraries[variant] = Library(build(self.tree, variant, self.cache), granule, self.name)
        return self._libraries[variant]
