"""The protocol's automaton over all that several operations did at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inspector.crosscheck.interleave.outcome import OF_ACCESSES, RCU, Outcome
from inspector.crosscheck.watch import Watch, protocol_call
from inspector.events import RawEvent
from inspector.model.operations import Operation
from inspector.model.session import Setup
from inspector.protocol.facts import Call
from inspector.protocol.rules import Violation

CALLBACK = Call("stage2_free_unlinked_table_rcu_cb", waited=True)
"""The engine runs it when every walker that was inside has left."""


@dataclass(frozen=True)
class Referee:
    """``start`` are the operations that lead to the starting state, with what each returned and did; ``operations``
    those that are interleaved."""

    setup: Setup
    start: tuple[tuple[Operation, int, Sequence[RawEvent]], ...]
    operations: tuple[Operation, ...]

    def judge(self, outcome: Outcome) -> Violation | None:
        """The first rule that the schedule of ``outcome`` breaks."""
        watch = Watch(self.setup)
        for operation, ret, raws in self.start:
            watch.take(operation, ret, raws)
        protocol = watch.protocol
        if protocol is None:
            return None
        turns = _bounds(outcome)
        for at in range(len(outcome.events) + 1):
            for fiber, begins in turns.get(at, ()):
                if begins:
                    protocol.begin(fiber, CALLBACK if fiber == RCU else self._call(fiber))
                else:
                    protocol.end(fiber, outcome.results[fiber].ret if fiber != RCU else 0)
            if at < len(outcome.events):
                protocol.feed(*outcome.events[at])
        return protocol.violations[0] if protocol.violations else None

    def _call(self, fiber: int) -> Call:
        return protocol_call(self.setup, self.operations[fiber])


def _bounds(outcome: Outcome) -> dict[int, list[tuple[int, bool]]]:
    """Before which event each fiber begins (``True``), and before which it has ended.

    Accesses and events are two lists in the order of time, and some of each are the same: any other access lies before
    the next event that is one.  A store that goes through no macro is an access alone.
    """
    both = [(at, fiber, raw) for at, (fiber, raw) in enumerate(outcome.events) if raw[0] in _BOTH]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    passed = 0
    for access in outcome.accesses:
        at, fiber, raw = both[passed] if passed < len(both) else (len(outcome.events), -1, ())
        same = fiber == access.fiber and raw[0] == OF_ACCESSES.get(access.kind) and raw[1] == access.pa
        passed += same
        first.setdefault(access.fiber, at)
        last[access.fiber] = at + same
    for at, (fiber, _) in enumerate(outcome.events):
        first[fiber] = min(first.get(fiber, at), at)
        last[fiber] = max(last.get(fiber, 0), at + 1)
    turns: dict[int, list[tuple[int, bool]]] = {}
    # Who has ended by then, has before another one begins; who does nothing of note ends where it begins.
    for fiber in sorted(last, key=lambda fiber: first[fiber]):
        if last[fiber] > first[fiber]:
            turns.setdefault(last[fiber], []).append((fiber, False))
    for fiber, at in first.items():
        turns.setdefault(at, []).append((fiber, True))
        if last[fiber] <= at:
            turns[at].append((fiber, False))
    return turns


_BOTH = frozenset(OF_ACCESSES.values())
