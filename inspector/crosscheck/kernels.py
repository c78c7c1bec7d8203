"""Two kernels' code side by side: baseline and patched, the same operation on both, everything compared after it.

No model judges here: what differs is what a patch changed.  A model's session goes along, so that the generator knows
what may be done next; where it is not that of these kernels, the operations are only less to the point.
"""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import dataclass

from inspector.crosscheck import harness as h
from inspector.crosscheck.differ import Difference, KernelSide, Sides, What, first_difference, odd_entries
from inspector.crosscheck.kernel import Kernel
from inspector.events import RawEvent
from inspector.model.operations import Operation, format_operation
from inspector.model.pages import NoSuchPage, PageStore
from inspector.model.session import NoSuchEntry, Session, Setup


class TableLost(h.StoreFull):
    """Both kernels misused memory in the same way: nothing can be learnt from this table any more."""


class KernelPair:
    """One table in the code of each kernel (see `Sides`): ``events`` are the baseline's, ``theirs`` the patched's."""

    def __init__(self, setup: Setup, baseline: Kernel, patched: Kernel) -> None:
        self.session = Session(setup)
        self.baseline = KernelSide(setup, baseline)
        self.patched = KernelSide(setup, patched)
        self.events: list[RawEvent] = []
        self.theirs: list[RawEvent] = []
        self.ret = 0
        self.known_faults = 0

    @property
    def kernels(self) -> tuple[KernelSide, ...]:
        """Both sides."""
        return self.baseline, self.patched

    def close(self) -> None:
        """Give the memory back."""
        for side in self.kernels:
            side.close()
        self.session.store.pages.clear()

    def stores(self) -> tuple[tuple[PageStore, int], tuple[PageStore, int]]:
        """The pages of either side, and the address of its root."""
        return self.baseline.store(), self.patched.store()

    def apply(self, operation: Operation) -> Difference | None:
        """Run it on both; the first difference, ``None`` when there is none.

        A fault of both alike is none, though the table is given up.  Raises as `Pair.apply` does.
        """
        text = format_operation(operation)
        ours, theirs = (_apply(side, operation) for side in self.kernels)
        if isinstance(ours, Exception) or isinstance(theirs, Exception):
            if isinstance(ours, Exception) and isinstance(theirs, Exception):
                raise ours
            return Difference(text, What.ONE_SIDE, *map(_ability, (ours, theirs)))
        (one, self.events, our_faults), (other, self.theirs, their_faults) = ours, theirs
        self.ret = one.ret
        if any(fault.kind is h.FaultKind.STORE_FULL for fault in (*our_faults, *their_faults)):
            raise h.StoreFull
        if [fault.kind for fault in our_faults] != [fault.kind for fault in their_faults]:
            return Difference(text, What.FAULT, *map(_told, (our_faults, their_faults)))
        if self.events != self.theirs:
            return Difference(text, What.EVENTS, *first_difference(self.events, self.theirs))
        if our_faults:
            self.known_faults += len(our_faults)
            raise TableLost
        for what, left, right in (
            (What.RETURN, one.ret, other.ret),
            (What.VALUE, one.value, other.value),
            (What.LEVEL, one.level, other.level),
        ):
            if left != right and not (operation.name == "get_leaf" and one.ret and what is not What.RETURN):
                return Difference(text, what, f"{left:#x}", f"{right:#x}")
        self._follow(operation)
        return self._compare_state(text)

    def _follow(self, operation: Operation) -> None:
        """The model's session does the same, as well as it can."""
        with contextlib.suppress(NoSuchEntry, ValueError, NoSuchPage, KeyError, IndexError, RecursionError):
            self.session.apply(operation)
        self.session.store.take_events()

    def _compare_state(self, text: str) -> Difference | None:
        left, right = (side.harness for side in self.kernels)
        counts, others = left.outstanding(), right.outstanding()
        if counts != others:
            odd = sorted(page for page in counts.keys() | others.keys() if counts.get(page) != others.get(page))
            return Difference(
                text, What.PAGES, *(str({hex(page): side.get(page) for page in odd}) for side in (counts, others))
            )
        for page in counts:
            one, other = left.page(page), right.page(page)
            if one != other:
                return Difference(text, What.TABLE, *odd_entries(page, array("Q", one), other))
        if left.info().pgd != right.info().pgd:
            return Difference(text, What.ROOT, *(f"{side.info().pgd:#x}" for side in (left, right)))
        if left.deferred() != right.deferred():
            return Difference(text, What.DEFERRED, *(str(side.deferred()) for side in (left, right)))
        return None


@dataclass(frozen=True)
class Both:
    """Begins the comparison of two kernels on a machine."""

    baseline: Kernel
    patched: Kernel

    def __call__(self, setup: Setup) -> Sides:
        return KernelPair(setup, self.baseline, self.patched)


_Done = tuple[h.Result, list[RawEvent], list[h.Fault]]


def _apply(side: KernelSide, operation: Operation) -> _Done | NoSuchEntry | h.Unsupported:
    try:
        result, raws = side.apply(operation)
    except (NoSuchEntry, h.Unsupported) as error:
        return error
    return result, raws, side.harness.faults() if result.faults else []


def _ability(done: _Done | Exception) -> str:
    return f"    cannot: {done}" if isinstance(done, Exception) else "    can"


def _told(faults: list[h.Fault]) -> str:
    return "\n".join(f"    {fault}" for fault in faults) or "    does not"
