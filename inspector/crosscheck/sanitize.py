"""A kernel's code under the sanitizers: its own accesses, warnings and leaks, whatever any model says.

No model judges here.  Wrong is what no correct code does (`FaultKind`), a WARN that the script has not asked for, and
a page that is still allocated when the table is gone and every grace period over.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.crosscheck.differ import Difference, What, uses_known_fault
from inspector.crosscheck.guide import Alone
from inspector.crosscheck.kernel import Kernel
from inspector.events import ALLOC, ALLOC_EXACT, STORE, RawEvent
from inspector.model.operations import Operation, format_operation
from inspector.model.session import NoSuchEntry, Setup
from inspector.model.state import LAST_LEVEL

_ENDS = frozenset({"destroy", "destroy_pgd", "hyp_destroy"})
_SHOWN = 4
"""Leaked pages that are named."""


class Sanitized(Alone):
    """One table in a kernel's code that is checked access by access (see `differ.Sides`)."""

    def __init__(self, setup: Setup, kernel: Kernel) -> None:
        super().__init__(setup, kernel, sanitize=True)
        self._odd = False
        self._unlinked: dict[int, int] = {}
        self._born: dict[int, str] = {}
        self._gone = False

    def apply(self, operation: Operation) -> Difference | None:
        """Run it; the first thing that is wrong by itself.  Raises as `Pair.apply` does."""
        last_page = self.kernel.last_page
        if operation.name == "free_unlinked" and self._unlinked.get(last_page) != operation.level + 1:
            raise NoSuchEntry(format_operation(operation))
        result, faults = self._run(operation)
        raws = self.theirs
        self._keep_account(operation, result.ret, raws, last_page)
        text = format_operation(operation)
        if faults:
            if not uses_known_fault(operation, self.session.setup.behaviours, faults):
                return Difference(text, What.FAULT, "", "\n".join(f"    {fault}" for fault in faults))
            self.known_faults += len(faults)
        if result.warnings:
            if not self._is_asked_for(operation):
                return Difference(text, What.WARNING, "", f"    {result.warnings} times")
            # The walk goes on over what it warned of: references are what they are from then on.
            self._odd = True
        if leaked := self._leaked():
            shown = [f"    {page:#x}, of '{self._born.get(page, '?')}'" for page in leaked[:_SHOWN]]
            more = [f"    and {len(leaked) - _SHOWN} more"] if len(leaked) > _SHOWN else []
            return Difference(text, What.LEAK, "", "\n".join([*shown, *more]))
        self._guide.follow(operation, raws)
        return None

    @property
    def _tampered(self) -> bool:
        """Another CPU's change may take entries away without their references, or leave ones behind."""
        return self._guide.tampered or self._odd

    def _keep_account(self, operation: Operation, ret: int, raws: list[RawEvent], last_page: int) -> None:
        """What the script itself answers for: foreign changes, and tables that it has not given back."""
        name = operation.name
        if name in ("init", "hyp_init"):
            self._gone = self._odd = False
            # What is left of a table before is not this one's.
            self._born = {}
        self._gone |= name in _ENDS
        # hyp_map is for what is not mapped: since 6.6 a table put over a block takes a second reference for the entry.
        self._odd |= name == "hyp_map" and any(raw[0] == STORE and raw[2] & 1 for raw in raws)
        if name == "create_unlinked" and ret == 0:
            self._unlinked[self.kernel.last_page] = operation.level + 1
        elif name == "free_unlinked":
            self._unlinked.pop(last_page, None)
        text = format_operation(operation)
        self._born.update((raw[1], text) for raw in raws if raw[0] in (ALLOC, ALLOC_EXACT))

    def _is_asked_for(self, operation: Operation) -> bool:
        """A WARN that a script brings about: it plants entries, or asks for what no caller does.

        That is: hyp_map over another mapping (kernel.md 11), create_unlinked of a page (8), a map into an identity map
        that is none (4.1), test_clear_young beyond the last address (7.5).
        """
        setup, name = self.session.setup, operation.name
        return (
            self._tampered
            or name == "hyp_map"
            or (name == "create_unlinked" and operation.level >= LAST_LEVEL)
            or (name == "map" and setup.machine.idmap and operation.addr != operation.pa)
            or (name == "test_clear_young" and operation.addr + operation.size > 1 << setup.ipa)
        )

    def _leaked(self) -> list[int]:
        """Pages that nobody can give back any more."""
        harness = self.kernel.harness
        if not self._gone or self._tampered or harness.deferred():
            return []
        held = {table.pa for page, level in self._unlinked.items() for table in harness.dump(page, level)}
        return [page for page in harness.outstanding() if page in self._born and page not in held]


@dataclass(frozen=True)
class UnderSanitizers:
    """Puts a kernel's code under the sanitizers."""

    kernel: Kernel

    def __call__(self, setup: Setup) -> Sanitized:
        return Sanitized(setup, self.kernel)
