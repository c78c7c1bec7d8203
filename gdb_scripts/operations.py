"""Runs inside gdb: ``stage2 break``, a breakpoint in an operation that touches a guest range.

Arguments are in x0 and on at a function's first instruction (AAPCS64); whose table it is, x0 says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gdb

from gdb_scripts import lend, packets
from gdb_scripts.facts import Facts, Table, code_address, facts
from inspector.tables import Translation

_PREFIX = "kvm_pgtable_stage2_"
_CONDITION = re.compile(r"\s*overlaps\(\s*(\S+?)\s*([-+])\s*(\S+?)\s*\)\s*$")
_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}
_ENTRIES = 8
"""So many places of an operation's range are shown."""


def number(text: str) -> int:
    """``0x40000000``, ``2M``, or any expression of gdb's.  Raises ``gdb.error``."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|\d+)([kKmMgGtT]?)", text)
    if match:
        return int(match[1], 0) << _UNITS.get(match[2].lower(), 0)
    return int(gdb.parse_and_eval(text)) & (1 << 64) - 1


def interval(text: str) -> tuple[int, int]:
    """``overlaps(A-B)`` or ``overlaps(A+SIZE)``.  Raises ``gdb.GdbError``."""
    match = _CONDITION.match(text)
    if match is None:
        raise gdb.GdbError(f"'{text}' is not overlaps(A-B), nor overlaps(A+SIZE)")
    low, high = number(match[1]), number(match[3])
    if match[2] == "+":
        high += low
    if high <= low:
        raise gdb.GdbError(f"'{text}' is an empty range")
    return low, high


def find(facts: Facts, name: str) -> str:
    """``map`` or ``kvm_pgtable_stage2_map``, as the kernel has it.  Raises ``gdb.GdbError``."""
    for candidate in (name, _PREFIX + name):
        if candidate in facts.operations:
            return candidate
    known = ", ".join(sorted(name.removeprefix(_PREFIX) for name in facts.operations if name.startswith(_PREFIX)))
    raise gdb.GdbError(f"Linux {facts.release} has no operation '{name}'; it has {known}")


class Operation(gdb.Breakpoint):  # type: ignore[misc]
    """Stops where the function is entered for one of ``tables`` and a range that meets ``within``."""

    def __init__(self, facts: Facts, name: str, tables: dict[int, Table], within: tuple[int, int] | None) -> None:
        self.address, arguments = facts.operations[name]
        self.operation = name
        self.arguments = arguments
        self.tables = tables
        self.within = within
        self.any_table = not tables
        self.known = {table.pgt: table for table in facts.tables}
        super().__init__(f"*{self.address:#x}")

    def table(self, pgt: int) -> Table | None:
        """The table at ``pgt``, of a VM that was made since, too, where another's was before."""
        if pgt not in self.known or not self.known[pgt].is_there():
            self.known = {table.pgt: table for table in facts(fresh=True).tables}
        return self.known.get(pgt)

    def stop(self) -> bool:
        """Asked at every operation of this kind, in whatever range: so by one packet, not by values of gdb's."""
        x: Sequence[int] = ()
        if send := packets.sender():
            now = packets.registers(send)
            x = now.x if now.pc == self.address else ()
        x = x or _registers(3)
        if not self.any_table and x[0] not in self.tables:
            return False
        if self.within is not None and "addr" in self.arguments:
            low, high = _range(self.arguments, x, self.known.get(x[0]))
            if low >= self.within[1] or high <= self.within[0]:
                return False
        with lend.asked_to_stop():
            return self.any_table or self.tables[x[0]].is_there()

    def lines(self) -> Iterator[str]:
        """The operation that is about to begin: its arguments, and the entries before."""
        x = _registers(8)
        table = self.table(x[0])
        told = ", ".join(f"{name}={x[at]:#x}" for at, name in enumerate(self.arguments) if at)
        yield f"{self.operation}({told}) on {table.title if table else f'a table at {x[0]:#x}'}\n"
        if table is not None and "addr" in self.arguments:
            yield from entries(table, *_range(self.arguments, x, table))


def _registers(count: int) -> list[int]:
    return [int(gdb.parse_and_eval(f"(unsigned long)$x{at}")) & (1 << 64) - 1 for at in range(count)]


def _range(arguments: Any, x: Sequence[int], table: Table | None) -> tuple[int, int]:
    """What the operation is asked to touch, in bytes; one page where it has no size."""
    low = x[arguments.index("addr")]
    size = x[arguments.index("size")] if "size" in arguments else (table.geometry.granule if table else 1)
    return low, low + max(size, 1)


def entries(table: Table, low: int, high: int) -> Iterator[str]:
    """How the first places of a range are translated now."""
    at = low
    for _ in range(_ENTRIES):
        if at >= high:
            return
        found: Translation = table.walk(at)
        if not found.steps:
            yield f"   IPA {at:#x}: {found.verdict}\n"
            return
        step = found.steps[-1]
        yield (
            f"   IPA {at:#x}: L{step.level} {step.table_pa:#x}[{step.index}] => "
            f"{step.descriptor.raw:#018x}  {step.descriptor.describe()}\n"
        )
        size = table.geometry.block_size(step.level)
        at = (at // size + 1) * size
    if at < high:
        yield f"   … up to {high:#x}\n"


class Return(gdb.Breakpoint):  # type: ignore[misc]
    """Where an operation returns to, in the same stack: a task may go on on another CPU meanwhile."""

    def __init__(self, of: Operation, sp: int) -> None:
        x = _registers(8)
        self.of = of
        self.sp = sp
        self.table = of.table(x[0])
        self.touched = _range(of.arguments, x, self.table) if "addr" in of.arguments else None
        super().__init__(f"*{code_address(int(gdb.parse_and_eval('(unsigned long)$x30'))):#x}", temporary=True)
        self.silent = True

    def stop(self) -> bool:
        return bool(int(gdb.parse_and_eval("(unsigned long)$sp")) & (1 << 64) - 1 == self.sp)

    def lines(self) -> Iterator[str]:
        result = _registers(1)[0] & 0xFFFFFFFF
        yield f"{self.of.operation} returned {result - (1 << 32) if result >> 31 else result}\n"
        if self.table is not None and self.touched is not None:
            yield from entries(self.table, *self.touched)


def show(write: Callable[[str], None]) -> Callable[[Any], None]:
    """A handler of stops: shows the operation, or its end, that gdb has stopped at."""

    def at_stop(event: Any) -> None:
        for point in getattr(event, "breakpoints", ()):
            if isinstance(point, Operation | Return):
                for line in point.lines():
                    write(line)

    return at_stop
