"""The model's session, which goes along for the generator's sake where no model judges a kernel's code."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from inspector.crosscheck.kernels import TableLost
from inspector.events import RawEvent
from inspector.model.operations import Operation
from inspector.model.pages import NoSuchPage
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
