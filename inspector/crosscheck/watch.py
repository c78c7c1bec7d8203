"""The protocol automaton over what a kernel's code does to one table, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inspector.codec import GRANULES
from inspector.crosscheck.differ import Difference, Pair, What
from inspector.crosscheck.guide import Alone
from inspector.crosscheck.kernel import Kernel
from inspector.events import RawEvent
from inspector.generations import WalkFlags
from inspector.model.operations import Operation, format_operation
from inspector.model.session import Setup
from inspector.model.state import SHARED, SKIP_BBM_TLBI, SKIP_CMO
from inspector.protocol.automaton import Protocol
from inspector.protocol.facts import Call, Facts, facts_of
from inspector.protocol.rules import Violation


def protocol_facts(setup: Setup, hyp: bool = False) -> Facts:
    """What the automaton must know of a script's machine and kernel."""
    machine = setup.machine
    return facts_of(
        setup.behaviours,
        setup.hyp_geometry() if hyp else setup.geometry(),
        hyp=hyp,
        fwb=machine.fwb and not machine.no_fwb,
        xnx=machine.xnx,
        dcache_op=machine.dcache_op,
        icache_op=machine.icache_op,
        rcu=machine.rcu and not machine.hyp_build,
    )


def protocol_call(setup: Setup, operation: Operation) -> Call:
    """An operation of a script as the automaton takes it."""
    behaviours, flags = setup.behaviours, operation.flags
    shared = bool(flags & SHARED) and operation.name in ("map", "relax_perms", "mkyoung")
    if operation.name in ("relax_perms", "mkyoung") and behaviours.attr_walk_flags is WalkFlags.FAULT_SHARED:
        shared = True
    return Call(
        operation.name,
        shared=shared and behaviours.shared_walks,
        skip_tlbi=bool(flags & SKIP_BBM_TLBI),
        skip_cmo=bool(flags & SKIP_CMO),
        ragged=operation.name == "unmap" and operation.size % (1 << GRANULES[setup.granule]) != 0,
    )


class Watch:
    """One table's automaton, from the operation that makes it on."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.protocol: Protocol | None = None

    def take(self, operation: Operation, ret: int, raws: Sequence[RawEvent]) -> Violation | None:
        """An operation that was done: the first violation in it."""
        name = operation.name
        if name in ("init", "hyp_init"):
            self.protocol = Protocol(protocol_facts(self.setup, name == "hyp_init"))
        protocol = self.protocol
        if protocol is None:
            return None
        if name == "poke":
            protocol.other_store(operation.addr, operation.level, operation.value, operation.change)
        elif name == "reference":
            protocol.other_reference(operation.addr, operation.level, operation.change)
        else:
            protocol.begin(0, protocol_call(self.setup, operation))
            protocol.feed_all(0, raws)
            protocol.end(0, ret)
        found = protocol.violations
        if not found:
            return None
        protocol.violations = []
        return found[0]


class Judged(Pair):
    """The model and a kernel's code, and the automaton over the kernel's events.

    A rule that is broken where the two agree is a difference by itself: it shows what model and kernel have in common.
    Where they differ as well, the difference says which rule is broken.
    """

    def __init__(self, setup: Setup, kernel: Kernel) -> None:
        super().__init__(setup, kernel)
        self.watch = Watch(setup)

    def apply(self, operation: Operation) -> Difference | None:
        """As `Pair.apply`."""
        difference = super().apply(operation)
        broken = self.watch.take(operation, self.their_ret, self.theirs)
        if broken is None:
            return difference
        if difference is not None:
            return replace(difference, broken=broken)
        return Difference(format_operation(operation), What.PROTOCOL, "", str(broken), broken=broken)


class Watched(Alone):
    """A kernel's code under the automaton alone (see `differ.Sides`): a difference is a broken rule.

    This works for a kernel that the model does not know, and for a fault that model and kernel share.
    """

    def __init__(self, setup: Setup, kernel: Kernel) -> None:
        super().__init__(setup, kernel)
        self.watch = Watch(setup)
        self.violation: Violation | None = None

    def apply(self, operation: Operation) -> Difference | None:
        """Run it; the first rule that it breaks.  Raises as `Pair.apply` does."""
        result, _ = self._run(operation)
        self.violation = self.watch.take(operation, result.ret, self.theirs)
        if self.violation is None:
            self._guide.follow(operation, self.theirs)
            return None
        return Difference(format_operation(operation), What.PROTOCOL, "", str(self.violation), broken=self.violation)


@dataclass(frozen=True)
class UnderWatch:
    """Puts a kernel's code under the automaton."""

    kernel: Kernel

    def __call__(self, setup: Setup) -> Watched:
        return Watched(setup, self.kernel)
