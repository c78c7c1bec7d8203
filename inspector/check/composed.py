"""What a shadow table must be made of: the guest hypervisor's own stage 2, and behind that the VM's memory.

KVM (``user_mem_abort`` with ``nested``) walks the hypervisor's table for an IPA of L2, takes the address of L1 that it
gives, and maps what the VMM has there, in pieces no larger than the hypervisor's.  A shadow entry stands for an entry
of the hypervisor's TLB: it may stay until the hypervisor invalidates it, whatever became of the table meanwhile.

So the hypervisor's table judges only while it is in force for some vCPU (``Nested.current``): Linux frees the tables of
a guest that ends without invalidating anything, and VTTBR_EL2 of a host keeps its last value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.capture.nested import GuestView, big_endian, guest_view, users
from inspector.check.backing import GUEST_MEMFD, READONLY, Backed, Pieces, backed, pieces_over
from inspector.check.ownership import Owned
from inspector.codec import Descriptor, Execute
from inspector.codec.bulk import Flags, Flat, Words
from inspector.snapshot import Backing, BackingState, Memslot, MmuKind
from inspector.tables.columns import Columns, columns_of
from inspector.tables.intervals import Intervals

AnyArray = NDArray[Any]

_CONTIGUOUS = 1 << 52
_CONTIGUOUS_SHIFT = {12: {3: 4, 2: 4, 1: 4}, 14: {3: 7, 2: 5}, 16: {3: 5, 2: 5}}
"""log2 of how many entries the contiguous bit joins, by granule and level (DDI 0487 D8.7.1)."""


@dataclass(frozen=True)
class _Theirs:
    """Leaves of the hypervisor's table, as parallel arrays; ``output`` is an address of L1."""

    ia: Words
    size: Words
    output: Words
    level: Flat
    rights: AnyArray


@dataclass(frozen=True, eq=False)
class Nested:
    """One shadow table; masks are of its entries.

    ``hosts`` are the leaves that map the host's own memory (`S8` reports them).  ``guest`` is the hypervisor's table,
    ``None`` where it has none (HCR_EL2.VM clear: L2's addresses are L1's); ``stage2`` tells which of the two.
    """

    owned: Owned
    hosts: Flags
    stage2: bool
    guest: GuestView | None

    @property
    def page(self) -> int:
        """Bytes of a page of the host."""
        return self.owned.view.capture.host.page_size

    @cached_property
    def leaves(self) -> Flags:
        """The leaves that these rules judge: beyond doubt (`S3`), inside the output size (`S4`), not the host's."""
        end = np.uint64(1 << self.owned.view.geometry.pa_bits)
        found = self.owned.leaf & ~self.owned.columns.spread(self.owned.contested) & ~self.hosts
        return self.owned.columns.among(found, lambda c: c.output < end)

    @property
    def readable(self) -> bool:
        """Whether what the hypervisor's table says now is known."""
        view = self.owned.view
        return self.guest is not None and bool(view.mmu.nested_tables) and not big_endian(view.vm)

    @property
    def current(self) -> bool:
        """Whether that counts: the table is in force."""
        return self.readable and any(users(self.owned.view.vm, self.owned.view.mmu))

    # --- the VM's memory, by physical address ---

    @cached_property
    def all_known(self) -> bool:
        """Whether what backs every slot is known (no guest_memfd, nothing unreadable)."""
        slots = self.owned.view.vm.memslots
        return all(
            slot.backing
            and not slot.flags & GUEST_MEMFD
            and not any(run.state is BackingState.UNREADABLE for run in slot.backing)
            for slot in slots
            if slot.npages
        )

    def _memory(self, *, writable: bool = False, special: bool | None = None) -> Intervals:
        """PAs that the VMM has behind some slot: those that L1 may write to, those (not) mapped by frame number."""

        def wanted(slot: Memslot, run: Backing) -> bool:
            right = not writable or (run.writable and not slot.flags & READONLY)
            return run.pa is not None and right and special in (None, run.special)

        slots = self.owned.view.vm.memslots
        runs = [run for slot in slots for run in slot.backing if wanted(slot, run)]
        return Intervals.of((run.pa or 0, (run.pa or 0) + run.size) for run in runs)

    @cached_property
    def memory(self) -> Intervals:
        """All of the VM's memory that is present."""
        return self._memory()

    @cached_property
    def ordinary(self) -> Intervals:
        """The part of it that the VMM has as ordinary memory, not by frame number alone."""
        return self._memory(special=False)

    @cached_property
    def writable(self) -> Intervals:
        """What L1 itself may write to."""
        return self._memory(writable=True)

    @cached_property
    def foreign(self) -> Flags:
        """Leaves on memory that is not the VM's."""
        if not self.all_known:
            return np.zeros_like(self.leaves)
        return self.owned.columns.among(self.leaves, lambda c: ~self.memory.contain(c.output, c.size))

    # --- the hypervisor's own table ---

    @cached_property
    def _theirs(self) -> _Theirs:
        """The leaves of the hypervisor's table that say what they map, ascending by address of L2.

        Where the contiguous bit joins entries that do not continue each other, the architecture leaves open which of
        them counts.
        """
        assert self.guest is not None
        columns = columns_of(self.guest.tree)
        found = columns.at(columns.leaf)
        shift = _CONTIGUOUS_SHIFT[columns.geometry.granule_shift]
        joined = np.array([shift.get(level, 0) for level in found.level.tolist()], dtype=np.uint64)
        span = (found.size << joined) - np.uint64(1)
        odd = (found.raw & np.uint64(_CONTIGUOUS) != 0) & ((found.ia ^ found.output) & span != 0)
        kept = np.flatnonzero(~odd & (found.output < np.uint64(1 << columns.geometry.pa_bits)))
        order = kept[np.argsort(found.ia[kept], kind="stable")]
        right = _rights(columns)[columns.leaf][order]
        return _Theirs(found.ia[order], found.size[order], found.output[order], found.level[order], right)

    @cached_property
    def _their_space(self) -> Intervals:
        return Intervals(self._theirs.ia, self._theirs.ia + self._theirs.size)

    @cached_property
    def _which(self) -> Flat:
        """For each of `leaves` the position in `_theirs` of what translates its first byte, -1: nothing."""
        found = self.owned.columns.at(self.leaves)
        return self._their_space.holding(found.ia)

    @cached_property
    def translated(self) -> Flags:
        """Leaves that lie wholly in what the hypervisor's table maps now (without one: all of them)."""
        if not self.stage2:
            return self.leaves
        space = Intervals.union(self._their_space.start, self._their_space.end)
        return self.owned.columns.among(self.leaves, lambda c: space.contain(c.ia, c.size))

    @cached_property
    def gone(self) -> Flags:
        """Leaves for which the hypervisor's table has no entry (any more), wherever that is known.

        A table that it has in two places, which is its right, is walked once: what the other translates is not known.
        """
        assert self.guest is not None
        geometry, unknown = self.guest.geometry, []
        for problem in self.guest.tree.problems:
            level = geometry.start_level - 1 if problem.index is None else problem.level
            unknown.append((problem.ia, problem.ia + geometry.block_size(level)))
        lost = Intervals.of(unknown)
        found = self.leaves & ~self.translated & ~self.foreign
        return self.owned.columns.among(found, lambda c: ~lost.touch(c.ia, c.size))

    @cached_property
    def too_large(self) -> Flags:
        """Leaves that are larger than the hypervisor's entry for their first byte, which is there."""
        return self._against(self.owned.columns.at(self.leaves).size, self._theirs.size, np.greater)

    @cached_property
    def wrong_level(self) -> Flags:
        """Leaves whose level hint (software bits [56:55]) is another than that of the hypervisor's entry."""
        hints = self.owned.columns.at(self.leaves).raw >> np.uint64(55) & np.uint64(3)
        return self._against(hints, self._theirs.level, np.not_equal)

    @cached_property
    def wider(self) -> Flags:
        """Leaves that allow what the hypervisor's entry does not."""
        mine = _rights(self.owned.columns)[self.leaves]
        return self._against(mine, self._theirs.rights, lambda one, other: one & ~other != 0)

    def _against(self, mine: AnyArray, theirs: AnyArray, rule: Callable[[AnyArray, AnyArray], AnyArray]) -> Flags:
        """The `leaves` of which ``rule`` is true: of what each has, and of what the entry has that translates it."""
        held = self._which >= 0
        chosen = np.zeros(len(held), dtype=bool)
        if held.any():
            chosen[held] = rule(mine[held], theirs[self._which[held]])
        found = np.zeros(len(self.leaves), dtype=bool)
        found[np.flatnonzero(self.leaves)] = chosen
        return found

    @cached_property
    def pieces(self) -> Pieces:
        """`translated` leaves over what must be behind them, page by page."""
        vm = self.owned.view.vm
        behind = backed(vm, self.page)
        judged = self.translated & ~self.foreign
        return pieces_over(self.owned, judged, self._composed(behind) if self.stage2 else behind)

    def _composed(self, behind: Backed) -> Backed:
        """What is behind addresses of L2, by the hypervisor's table and what is behind those of L1."""
        rows = []
        table = self._theirs
        for l2, size, l1 in zip(table.ia.tolist(), table.size.tolist(), table.output.tolist(), strict=True):
            first, last = np.searchsorted(behind.at.end, l1, "right"), np.searchsorted(behind.at.start, l1 + size)
            for n in range(int(first), int(last)):
                start, end = int(behind.at.start[n]), int(behind.at.end[n])
                low, high = max(start, l1), min(end, l1 + size)
                pa = int(behind.pa[n])
                shifted = pa if pa == (1 << 64) - 1 else pa + low - start
                rows.append((l2 + low - l1, l2 + high - l1, shifted, int(behind.state[n]), int(behind.rights[n])))
        made = np.array(rows, dtype=np.uint64).reshape(-1, 5)
        ipa, end_, pa_, state, right = made[np.argsort(made[:, 0], kind="stable")].T
        return Backed(Intervals(ipa, end_), pa_, state, right)


def _rights(columns: Columns) -> AnyArray:
    """`rights` of every entry."""
    each = np.array([rights(one) for one in columns.patterns], dtype=np.uint8)
    found: AnyArray = each[columns.pattern]
    return found


def rights(entry: Descriptor) -> int:
    """Reading 1, writing 2, execution at EL1 4 and at EL0 8."""
    executable = {Execute.ALL: 12, Execute.PRIVILEGED: 4, Execute.UNPRIVILEGED: 8}.get(entry.executable, 0)
    return entry.readable * 1 | entry.writable * 2 | executable


def nested(owned: Owned, hosts: Flags) -> Nested | None:
    """``owned`` as a shadow; ``None`` for another table, and where its leaves stand for nothing (any more)."""
    mmu = owned.view.mmu
    if mmu.kind is not MmuKind.SHADOW or not mmu.nested_valid or mmu.pending_unmap or mmu.nested_stage2 is None:
        return None
    return Nested(owned, hosts, mmu.nested_stage2, guest_view(owned.view))
