"""Runs inside gdb: ``stage2 watch IPA``, who changes this translation?

A watchpoint on every entry that takes part in the translation, in the linear map, through which the kernel writes its
tables; moved along when the tree changes shape.  At each stop the entries are read physically, before the store and
after it: a guest that uses the same virtual address, a store of the same value and a cmpxchg that loses change nothing
and are nobody's business.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import gdb

from gdb_scripts import lend, moving, packets
from gdb_scripts.facts import Facts, Table
from inspector.codec import Descriptor, decode
from inspector.tables import Step

_FRAMES = 24
_ACCESS_FLAG = 1 << 10
"""Of a leaf (DDI 0487 D8.3.2)."""
DESTROYING = ("kvm_pgtable_stage2_destroy", "kvm_pgtable_stage2_destroy_pgd")
"""Once for a table each: from 6.19 on it is destroyed gigabyte by gigabyte before, and a stop at each would keep a VM
of 48 bits from ending for half an hour; what that clears is told as any change."""


@dataclass(frozen=True)
class Change:
    """One entry of the translation, before and after.

    ``cpu`` and ``chain`` are of the store; ``chain`` is empty when there was none: the hardware updates the access flag
    by itself (VTCR_EL2.HA), and no watchpoint sees that.
    """

    step: Step
    after: Descriptor
    cpu: int | None
    chain: Sequence[str]

    def lines(self, number: int) -> Iterator[str]:
        step = self.step
        where = f"L{step.level} {step.table_pa:#x}[{step.index}] at {step.entry_pa:#x}"
        by = "without a store" if self.cpu is None else f"by CPU {self.cpu}"
        if self.cpu is None and self.after.raw ^ step.descriptor.raw == _ACCESS_FLAG:
            by += ": the hardware's access flag"
        yield f"#{number} {where} changed {by}\n"
        yield f"   was {step.descriptor.raw:#018x}  {step.descriptor.describe()}\n"
        yield f"   now {self.after.raw:#018x}  {self.after.describe()}\n"
        for frame in self.chain:
            yield f"      {frame}\n"


class Watch:
    """One translation, followed until ``count`` changes were seen, a signal comes, or the table goes."""

    def __init__(self, facts: Facts, table: Table, ipa: int, write: Callable[[str], None]) -> None:
        self._facts = facts
        self._table = table
        self._ipa = ipa
        self._write = write
        self._steps: Mapping[int, Step] = {}
        self.changes = 0
        self.stops = 0

    def follow(self, count: int | None, stop_at_each: bool) -> str:
        """Why it ended, in words."""
        ends = {self._facts.operations[name][0]: name for name in DESTROYING if name in self._facts.operations}
        try:
            with moving.moving() as mover:  # whatever is read in here is put back when this process is killed
                self._look()
                if not self._steps:
                    raise gdb.GdbError(f"IPA {self._ipa:#x} of {self._table.vm}: {self._table.walk(self._ipa).verdict}")
                self._show()
                while True:
                    mover.place(self._points(ends))
                    stopped = mover.run()
                    self.stops += 1
                    if moving.asked_to_end():
                        return "interrupted"
                    if why := self._at(mover, stopped, ends):
                        return why
                    if stop_at_each and self.changes:
                        return "stopped after the store"
                    if count is not None and self.changes >= count:
                        return "seen as often as asked for"
        except moving.Gone:
            return "the machine is gone"

    def _points(self, ends: Mapping[int, str]) -> list[bytes]:
        watched = [b"2,%x,8" % (step.entry_pa + self._table.linear & (1 << 64) - 1) for step in self._steps.values()]
        return [*watched, *(b"0,%x,4" % address for address in ends)]

    def _at(self, mover: moving.Mover, stopped: moving.Stopped, ends: Mapping[int, str]) -> str | None:
        """What happened at one stop; a sentence when nothing can follow."""
        registers = moving.registers()
        if registers.pc in ends and registers.x[0] == self._table.pgt:
            function = ends[registers.pc]
            return f"the table is being destroyed ({function}): what is left in it is freed without being cleared"
        if not stopped.watch:
            if registers.pc in ends:
                mover.step(stopped.thread)
            return None
        chain = self._chain(registers)
        # Whatever is other by now and was not stored by this CPU's instruction, which comes next.
        self._tell(None, ())
        mover.step(stopped.thread, again=False)
        self._tell(stopped.cpu, chain)
        return None

    def _look(self) -> None:
        self._steps = {step.level: step for step in self._table.walk(self._ipa).steps}

    def _tell(self, cpu: int | None, chain: Sequence[str]) -> None:
        """Each entry watched that is not what it was; then the tree as it is."""
        changed = False
        for step in self._steps.values():
            raw = lend.read_physical(step.entry_pa, 8)
            if raw is None or (value := struct.unpack("<Q", raw)[0]) == step.descriptor.raw:
                continue
            changed = True
            self.changes += 1
            after = decode(value, step.level, self._table.geometry, self._table.format)
            for line in Change(step, after, cpu, chain).lines(self.changes):
                self._write(line)
        if changed:
            self._look()

    def _show(self) -> None:
        self._write(f"{self._table.title}: IPA {self._ipa:#x} is translated by\n")
        for step in self._steps.values():
            self._write(
                f"   L{step.level} {step.table_pa:#x}[{step.index}] at {step.entry_pa:#x} => "
                f"{step.descriptor.raw:#018x}  {step.descriptor.describe()}\n"
            )

    def _chain(self, registers: packets.Registers) -> list[str]:
        """The kernel's functions, innermost first, by its frame records (AAPCS64): no vmlinux is needed."""
        facts = self._facts
        found = [facts.function(registers.pc)]
        frame, link = registers.x[29], registers.x[30]
        for number in range(_FRAMES):
            record = lend.read(frame, 16)
            if record is None:
                break
            above, back = struct.unpack("<2Q", record)
            # A leaf function has no record of its own: its caller is in x30 alone.
            if not number and _name(facts.function(link)) not in (_name(found[0]), _name(facts.function(back))):
                found.append(facts.function(link))
            if not back:
                break
            found.append(facts.function(back))
            if above <= frame:
                break
            frame = above
        return found


def _name(place: str) -> str:
    return place.partition("+")[0]
