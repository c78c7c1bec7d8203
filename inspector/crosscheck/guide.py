"""A kernel's code by itself, where no model judges, and the session that goes along for the generator's sake."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from inspector.crosscheck.differ import KernelSide
from inspector.crosscheck.harness import Fault, FaultKind, Result, StoreFull
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.kernels import TableLost
from inspector.events import RawEvent
from inspector.model.operations import Operation
from inspector.model.pages import NoSuchPage, PageStore
from inspector.model.session import NoSuchEntry, Session, Setup


class Guide:
    """Follows what a kernel's code does to one table.

    ``session`` says what may be done next.  Where the kernel does otherwise (it is wrong, or of no known generation),
    what the generator plants in the name of other CPUs is no longer to the point and would misuse the table: such a
    table is given up.  ``tampered``: something was planted.
    """

    def __init__(self, setup: Setup) -> None:
        self.session = Session(setup)
        self.tampered = self._astray = False

    def note(self, operation: Operation) -> None:
        """An operation that the kernel's code has done, and that is about to be judged."""
        if operation.name in ("init", "hyp_init"):
            self.tampered = False
        self.tampered |= operation.name in ("poke", "reference") or bool(operation.lose_cas)

    def follow(self, operation: Operation, raws: Sequence[RawEvent]) -> None:
        """The same, with its events, after nothing wrong was found in it.  Raises `TableLost`."""
        same = False
        with contextlib.suppress(NoSuchEntry, ValueError, NoSuchPage, KeyError, IndexError, RecursionError):
            self.session.apply(operation)
            same = self.session.store.events == list(raws)
        self.session.store.take_events()
        self._astray |= not same
        if self._astray and self.tampered:
            raise TableLost


class Alone:
    """One table in a kernel's code, as one half of `differ.Sides`: what judges it is in the classes on top."""

    def __init__(self, setup: Setup, kernel: Kernel, *, sanitize: bool = False) -> None:
        self._guide = Guide(setup)
        self.kernel = KernelSide(setup, kernel, sanitize=sanitize)
        self.events: list[RawEvent] = []
        self.theirs: list[RawEvent] = []
        self.ret = 0
        self.known_faults = 0

    @property
    def session(self) -> Session:
        """The model's."""
        return self._guide.session

    @property
    def kernels(self) -> tuple[KernelSide, ...]:
        """The one side."""
        return (self.kernel,)

    def stores(self) -> tuple[tuple[PageStore, int], tuple[PageStore, int]]:
        """The kernel's pages, on both sides alike."""
        mine = self.kernel.store()
        return mine, mine

    def close(self) -> None:
        """Give the memory back."""
        self.kernel.close()
        self.session.store.pages.clear()

    def _run(self, operation: Operation) -> tuple[Result, list[Fault]]:
        """The operation on the kernel's code; its faults.  Raises as `Pair.apply` does."""
        result, raws = self.kernel.apply(operation)
        faults = self.kernel.harness.faults() if result.faults else []
        if any(fault.kind is FaultKind.STORE_FULL for fault in faults):
            raise StoreFull
        self.events = self.theirs = raws
        self.ret = result.ret
        self._guide.note(operation)
        return result, faults
