"""Random machines and operations: what the differential campaign feeds to both sides.

Everything is drawn from one ``random.Random``.  The generator looks at the model's state to be productive: it picks
addresses in a few small regions so that operations meet, touches entries that exist, and undoes what would otherwise
make the kernel's code itself misbehave (a marker without a reference, say).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from inspector.codec import GRANULES
from inspector.events import CASFAIL, RawEvent
from inspector.generations import GENERATIONS, Annotation, Generation, MapScheme, ProtLayout, WalkFlags
from inspector.model.attributes import AF
from inspector.model.machine import Machine
from inspector.model.operations import LAST, PLENTY, Operation
from inspector.model.prot import Prot
from inspector.model.session import Session, Setup
from inspector.model.stage2 import Stage2
from inspector.model.state import HANDLE_FAULT, IGNORE_EAGAIN, SHARED, SKIP_BBM_TLBI, SKIP_CMO

_IPA = {
    "4k": (32, 33, 36, 39, 40, 40, 40, 42, 43, 44, 48),
    "16k": (32, 36, 39, 40, 42, 47, 48),
    "64k": (32, 36, 40, 42, 44, 48, 52),
}
_VA = {"4k": (30, 39, 47, 48), "16k": (36, 47, 48), "64k": (42, 48)}
_PERMISSIONS = tuple(map(int, (Prot.RWX, Prot.RWX, Prot.RW, Prot.RW, Prot.R, Prot.R | Prot.X, Prot.NONE, Prot.W)))
_TRUE = dict(GENERATIONS)
# What is generated must not change when a test sets a behaviour of the model as it is not.
_X, _DEVICE, _NC = int(Prot.X), int(Prot.DEVICE), int(Prot.NORMAL_NC)


_OFTEN = {"4k": 82, "16k": 10, "64k": 8}
"""How often a granule is drawn, in a hundred."""


def random_setup(rng: Random, label: str, granules: Sequence[str] = tuple(_OFTEN)) -> Setup:
    """A machine for this generation, of one of these granules."""
    behaviours = _TRUE[label]
    granule = rng.choices(granules, [_OFTEN[each] for each in granules])[0]
    lpa2 = behaviours.lpa2 and granule != "64k" and rng.random() < 0.2
    ipa = rng.choice((*_IPA[granule], *((52, 50) if lpa2 else ())))
    va = rng.choice((*_VA[granule], *((52, 50) if lpa2 and granule == "4k" else ())))
    machine = Machine(
        fwb=rng.random() < 0.5,
        tlb_range=rng.random() < 0.5,
        xnx=rng.random() < 0.5,
        hvhe=rng.random() < 0.3,
        bti=rng.random() < 0.3,
        dcache_op=rng.random() < 0.9 or not behaviours.mm_ops,
        icache_op=rng.random() < 0.9 or not behaviours.mm_ops,
        no_fwb=rng.random() < 0.1 and bool(behaviours.pgt_flags.bit("NOFWB")),
        as_s1=rng.random() < 0.1 and behaviours.as_s1,
        idmap=rng.random() < 0.05 and behaviours.idmap_and_force_pte,
        force_pte=rng.choices((None, False, True), (86, 7, 7))[0] if behaviours.idmap_and_force_pte else None,
        hyp_build=rng.random() < 0.05,
        rcu=rng.random() < 0.9,
    )
    pa = 52 if lpa2 or granule == "64k" else 48
    return Setup(label, granule, ipa, pa, va, lpa2, machine)


@dataclass(frozen=True)
class Focus:
    """What is done more often than by itself: ``hyp`` is the share of tables that are hyp stage-1, ``more`` names
    operations (``split``, ``annotate``) that are drawn `TIMES` as often.  ``alone`` is the share of tables that nobody
    else touches: no entry is planted, no foreign reference taken, no cmpxchg lost."""

    hyp: float = 0.1
    more: frozenset[str] = frozenset()
    alone: float = 0.0


TIMES = 20

PLAIN = Focus()
"""Nothing more often than by itself."""


class Generator:
    """Operations for one sequence on one table; ``hyp`` chooses hyp stage-1."""

    def __init__(self, rng: Random, session: Session, hyp: bool, focus: Focus = PLAIN) -> None:
        self.rng = rng
        self.session = session
        self.setup = session.setup
        self.behaviours: Generation = _TRUE[session.setup.generation]
        self.hyp = hyp
        self.focus = focus
        self.alone = focus.alone > 0 and rng.random() < focus.alone
        shift = GRANULES[self.setup.granule]
        self.page = 1 << shift
        self.block = 1 << (2 * shift - 3)
        self.big = 1 << (3 * shift - 6)
        bits = self.setup.va if hyp else self.setup.ipa
        self.limit = 1 << bits
        self.extra_references: list[Operation] = []
        self.pending: list[Operation] = []
        self.last_page = 0
        self.regions = [self._region() for _ in range(rng.choice((1, 2, 2, 3)))]
        self.pa_offset = rng.choice((0x4000_0000, 0x4000_0000, 0x80_0000_0000, 0x4000_0000 + self.block))
        self.walkable = not self.setup.machine.hyp_build

    def _region(self) -> int:
        """A place where things happen: an address aligned to two blocks."""
        rng = self.rng
        span = 4 * self.block
        choice = rng.randrange(6)
        if choice == 0:
            return 0
        if choice == 1:
            return self.limit - span
        if choice == 2:
            return (self.limit >> 1) - span // 2
        if choice == 3 and self.big < self.limit:
            return rng.randrange(1, max(2, min(self.limit // self.big, 16))) * self.big - span // 2
        return rng.randrange(0, min(self.limit, 1 << 36) // span) * span

    # --- places

    def _addr(self, aligned: bool = True) -> int:
        rng = self.rng
        addr = rng.choice(self.regions) + rng.randrange(4) * self.block
        kind = rng.random()
        if kind < 0.45:
            addr += rng.choice((0, 0, 1, 2, 3, self.block // self.page - 1, self.block // self.page // 2)) * self.page
        elif kind < 0.5:
            addr += rng.randrange(self.block // self.page) * self.page
        if not aligned and rng.random() < 0.1:
            addr += rng.randrange(self.page)
        if rng.random() < 0.004:
            addr = rng.choice((self.limit - self.page, self.limit, self.limit + self.page, (1 << 64) - self.page))
        return addr

    def _size(self, cheap: bool = False) -> int:
        """Bytes; ``cheap``: few pages, because every page is an entry of its own."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.5:
            size = self.page
        elif kind < 0.75 or (cheap and (kind < 0.97 or self.page > 4096)):
            size = rng.randrange(1, 9) * self.page
        elif kind < 0.92:
            size = self.block
        elif kind < 0.97:
            size = 2 * self.block
        elif kind < 0.98:
            size = self.block + rng.randrange(1, 5) * self.page
        elif kind < 0.985 and not cheap:
            size = self.big
        elif kind < 0.988:
            size = 0
        else:
            size = rng.randrange(1, 4 * self.page)
        if rng.random() < 0.03:
            size += rng.randrange(self.page)
        return size

    def _map_range(self) -> tuple[int, int, int]:
        """``(addr, size, pa)`` such that the number of leaves stays small."""
        rng = self.rng
        addr = self._addr(aligned=False)
        cheap = bool(self.setup.machine.force_pte)
        kind = rng.random()
        pa = addr % (1 << 38) + self.pa_offset
        if kind < 0.12:
            pa = rng.randrange(1 << 20) * self.page
            cheap = True
        elif kind < 0.14:
            pa += rng.randrange(self.page)
        elif kind < 0.15:
            pa = rng.choice((1 << 48, (1 << 52) - self.page, (1 << 48) - self.page, (1 << 64) - self.page, 1 << 52))
            cheap = True
        elif kind < 0.25 and self.setup.pa == 52:
            pa |= rng.randrange(16) << 48
        size = self._size(cheap)
        if kind < 0.6 and not cheap and size >= self.block:
            addr &= -self.block if size < self.big or rng.random() < 0.3 else -self.big
            pa = (pa & -self.block) if size < self.big else (pa & -self.big)
        elif (addr | pa) & (self.block - 1) and size >= self.block and (addr ^ pa) & (self.block - 1):
            if rng.random() < 0.4 and self.block == 512 * self.page:
                # A block's range at an address of its own, and a PA that is not: page by page, which costs 512 leaves.
                addr, size = addr & -self.block, self.block
            else:
                size = rng.randrange(1, 9) * self.page
        if self.setup.machine.idmap and rng.random() < 0.9:
            pa = addr
            if size >= self.block:
                size = rng.choice((self.page, self.block))
        return addr, size, pa

    # --- arguments

    def _prot(self, memory: bool = True) -> int:
        rng = self.rng
        prot = rng.choice(_PERMISSIONS)
        layout = self.behaviours.prot_layout
        if layout is ProtLayout.SPLIT_X and rng.random() < 0.2:
            prot = (prot & ~_X) | rng.choice((int(Prot.PX), int(Prot.UX)))
        value = prot
        kind = rng.random()
        if memory and kind < 0.25:
            value |= _DEVICE
            if rng.random() < 0.9:
                value &= ~_X
        elif memory and kind < 0.45 and layout is not ProtLayout.SINGLE_X:
            value |= _NC
            if rng.random() < 0.9:
                value &= ~_X
            if rng.random() < 0.05:
                value |= _DEVICE
        if rng.random() < 0.15 and self.behaviours.software_bits:
            value |= rng.randrange(16) << 55
        return value

    def _cache(self) -> int | None:
        kind = self.rng.random()
        if kind < 0.8:
            return PLENTY
        return None if kind < 0.86 else self.rng.randrange(4)

    def _walk_flags(self) -> int:
        rng = self.rng
        if not self.behaviours.shared_walks:
            return 0
        ignore = self.behaviours.wrprotect_ignores_eagain
        kind = rng.random()
        if kind < 0.45:
            flags = SHARED if ignore else SHARED | HANDLE_FAULT
        elif kind < 0.55:
            flags = SHARED | IGNORE_EAGAIN if ignore else SHARED
        elif kind < 0.62:
            flags = IGNORE_EAGAIN if ignore else HANDLE_FAULT
        else:
            flags = 0
        if rng.random() < 0.03:
            flags |= rng.choice((SKIP_BBM_TLBI, SKIP_CMO, SKIP_BBM_TLBI | SKIP_CMO))
        return flags

    def _faults(self, operation: Operation) -> Operation:
        rng = self.rng
        if rng.random() < 0.05:
            operation.fail_alloc = rng.choice((1, 1, 2, 3))
        shared = operation.flags & SHARED or (
            operation.name in ("mkyoung", "relax_perms") and self.behaviours.attr_walk_flags is WalkFlags.FAULT_SHARED
        )
        if shared and not self.alone and rng.random() < 0.15:
            operation.lose_cas = rng.choice((1, 1, 1, 2, 3))
            operation.race_mode = rng.choice(("set", "clear", "value"))
            last = 0 if operation.race_mode == "value" else AF
            operation.race_value = rng.choice((AF, AF, 1 << 7, 1 << 55, self.behaviours.locked_value or AF, last))
        return operation

    # --- operations

    def _map(self) -> Operation:
        addr, size, pa = self._map_range()
        return self._faults(
            Operation("map", addr, size, pa, self._prot(), cache=self._cache(), flags=self._walk_flags())
        )

    def _unmap(self) -> Operation:
        rng = self.rng
        if rng.random() < 0.01:
            return Operation("unmap", 0, self.limit)
        return Operation("unmap", self._addr(aligned=False), self._size())

    def _wrprotect(self) -> Operation:
        return Operation("wrprotect", self._addr(aligned=False), self._size())

    def _relax(self) -> Operation:
        flags = self._walk_flags() & ~(SKIP_BBM_TLBI | SKIP_CMO)
        if self.behaviours.attr_walk_flags is not WalkFlags.CALLER:
            flags = 0
        prot = self._prot(memory=False)
        if self.rng.random() < 0.9:
            prot &= int(Prot.RWX)
        return self._faults(Operation("relax_perms", self._addr(aligned=False), prot=prot, flags=flags))

    def _mkyoung(self) -> Operation:
        flags = self._walk_flags() & ~(SKIP_BBM_TLBI | SKIP_CMO)
        if self.behaviours.attr_walk_flags is not WalkFlags.CALLER:
            flags = 0
        return self._faults(Operation("mkyoung", self._addr(aligned=False), flags=flags))

    def _age(self) -> Operation:
        rng = self.rng
        if self.behaviours.test_clear_young:
            return Operation("test_clear_young", self._addr(aligned=False), self._size(), switch=rng.choice((0, 1, 1)))
        return Operation(rng.choice(("mkold", "mkold", "is_young")), self._addr(aligned=False))

    def _flush(self) -> Operation:
        return Operation("flush", self._addr(aligned=False), self._size())

    def _annotate(self) -> Operation:
        rng = self.rng
        addr, size = self._addr(aligned=False), self._size(cheap=True)
        kind = self.behaviours.annotation
        if kind is Annotation.NONE:
            return self._unmap()
        if kind is Annotation.TYPED:
            payload = rng.choice((0, 2, rng.randrange(1 << 60) & ~1, 1 << 57, rng.randrange(1 << 64), 0x400))
            return self._faults(
                Operation(
                    "annotate",
                    addr,
                    size,
                    kind=rng.choice((2, 2, 2, 3, 3, 0, 1, 5)),
                    value=payload,
                    cache=self._cache(),
                )
            )
        owner = rng.choice((0, 1, 1, 1, 2, 255))
        return self._faults(Operation("set_owner", addr, size, value=owner, cache=self._cache()))

    def _split(self) -> Operation:
        rng = self.rng
        if not self.behaviours.split:
            return self._unmap()
        cache = rng.choice((0, 1, 1, 2, 2, 3, 4))
        addr, size = self._addr(aligned=False), self._size()
        operation = Operation("split", addr, size, cache=cache)
        if self.page == 4096 and rng.random() < 0.1:
            operation.cache = 600
            operation.fail_alloc = rng.randrange(1, 6)
        elif rng.random() < 0.1:
            operation.fail_alloc = rng.choice((1, 2))
        return operation

    def _unlinked(self) -> Operation:
        rng = self.rng
        if not self.behaviours.split:
            return self._flush()
        level = rng.choice((2, 2, 2, 1, 1, 0, 3))
        size = 1 << ((GRANULES[self.setup.granule] - 3) * (4 - level) + 3)
        pa = rng.randrange(1, 8) * size + (self.page if rng.random() < 0.05 else 0)
        force = rng.choice((0, 0, 1))
        cache = rng.randrange(0, 5)
        return Operation("create_unlinked", pa=pa, level=level, prot=self._prot(), cache=cache, switch=force)

    def _leaf(self) -> Operation:
        if not self.behaviours.get_leaf:
            return self._hyp_map() if self.hyp else Operation("is_young", self._addr(aligned=False))
        return Operation("get_leaf", self._addr(aligned=False))

    def _grace_period(self) -> Operation:
        return Operation("grace_period")

    def _existing(self) -> tuple[int, int, int] | None:
        """A random entry near a region: ``(address, level, entry)``, of any kind."""
        pgt = self.session.pgt
        if pgt is None or not pgt.root:
            return None
        addr = self._addr() % self.limit
        ret, entry, level = pgt.get_leaf(addr)
        self.session.store.take_events()
        return None if ret else (addr, level, entry)

    def _poke(self) -> Operation:
        """Another CPU, the hardware or another subsystem changes an entry or a count."""
        rng = self.rng
        found = self._existing()
        if found is None:
            return self._leaf()
        addr, level, entry = found
        kind = rng.random()
        if entry & 1:
            if kind < 0.4:
                return Operation("poke", addr, level=level, value=entry ^ AF)
            flip = rng.choice((1 << 6, 1 << 7, 1 << 54, 1 << 55, 1 << 58, 1 << 53, 3 << 53, 1 << 52, 1 << 2, 7 << 3))
            return Operation("poke", addr, level=level, value=entry ^ flip)
        if self.hyp:
            return self._leaf()
        if entry == 0 and self.behaviours.locked_value and kind < 0.7:
            self.pending.append(rng.choice((self._map, self._map, self._relax, self._mkyoung, self._unmap))())
            # The address that was chosen with a size is gone: a large one would now be mapped page by page.
            self.pending[-1].addr, self.pending[-1].size = addr, min(self.pending[-1].size, 8 * self.page)
            return Operation("poke", addr, level=level, value=self.behaviours.locked_value, change=1)
        if entry == 0 and kind < 0.9:
            return Operation("poke", addr, level=level, value=4, change=1)
        return self._leaf()

    def _reference(self) -> Operation:
        """A speculative reference taken on a table, or the one taken before dropped."""
        rng = self.rng
        if self.extra_references and rng.random() < 0.6:
            undo = self.extra_references.pop(rng.randrange(len(self.extra_references)))
            pgt = self.session.pgt
            place = pgt.entry_at(undo.addr, undo.level) if pgt is not None else None
            if place is None or place[0] != undo.value:
                return self._leaf()
            return Operation("reference", undo.addr, level=undo.level, change=-1)
        found = self._existing()
        pgt = self.session.pgt
        if found is None or pgt is None:
            return self._leaf()
        addr, level, _ = found
        place = pgt.entry_at(addr, level)
        if place is None:
            return self._leaf()
        self.extra_references.append(Operation("reference", addr, level=level, value=place[0]))
        return Operation("reference", addr, level=level, change=1)

    def _hyp_map(self) -> Operation:
        rng = self.rng
        addr, size, pa = self._map_range()
        if rng.random() < 0.3:  # blocks over blocks with other attributes: conflicts
            addr, size, pa = addr & -self.block, rng.choice((1, 2, 2, 3)) * self.block, pa & -self.block
        prot = self._prot()
        if rng.random() < 0.6:
            prot = int(rng.choice((Prot.RW, Prot.R, Prot.R | Prot.X, Prot.RW | Prot.DEVICE)))
        else:
            prot |= int(Prot.R)
        if rng.random() < 0.03:
            prot &= ~int(Prot.R)
        return self._faults(Operation("hyp_map", addr, size, pa, prot))

    def _hyp_unmap(self) -> Operation:
        if not self.behaviours.hyp_unmap:
            return self._leaf()
        return Operation("hyp_unmap", self._addr(aligned=False), self._size())

    def _stage2_weights(self) -> list[tuple[Callable[[], Operation], int]]:
        return [
            (self._map, 40),
            (self._unmap, 14),
            (self._wrprotect, 5),
            (self._relax, 7),
            (self._mkyoung, 5),
            (self._age, 5),
            (self._flush, 2),
            (self._annotate, 4),
            (self._split, 3),
            (self._unlinked, 1),
            (self._leaf, 2),
            (self._grace_period, 2),
            (self._poke, 5),
            (self._reference, 1),
        ]

    def _hyp_weights(self) -> list[tuple[Callable[[], Operation], int]]:
        return [(self._hyp_map, 60), (self._hyp_unmap, 30), (self._leaf, 5), (self._poke, 2)]

    def operations(self, count: int) -> Iterator[Operation]:
        """About ``count`` operations: init, what happens, the end of the table."""
        rng = self.rng
        if self.hyp:
            yield Operation("hyp_init")
            weights = self._hyp_weights()
        else:
            if rng.random() < 0.02:
                yield Operation("init", fail_alloc=1)
            yield Operation("init")
            weights = self._stage2_weights()
        functions = [function for function, _ in weights]
        if self.alone:
            weights = [each for each in weights if each[0] not in (self._poke, self._reference)]
            functions = [function for function, _ in weights]
        more = self.focus.more
        chances = [chance * TIMES if function.__name__[1:] in more else chance for function, chance in weights]
        for _ in range(count):
            if self.pending:
                yield self.pending.pop(0)
            else:
                yield rng.choices(functions, chances)[0]()
        while self.pending:
            yield self.pending.pop(0)
        if self.hyp:
            yield Operation("hyp_destroy")
            return
        if self.behaviours.map_scheme is MapScheme.UNLINK:
            yield Operation("grace_period")
        yield from self._the_end()

    def _the_end(self) -> Iterator[Operation]:
        rng = self.rng
        if self.behaviours.destroy_in_ranges and rng.random() < 0.5:
            step = min(self.limit, max(self.big, self.limit >> rng.randrange(4)))
            for addr in range(0, self.limit, step):
                yield Operation("destroy_range", addr, step)
            yield Operation("destroy_pgd")
        else:
            yield Operation("destroy")
        if rng.random() < 0.3:
            yield Operation("map", 0, self.page, self.page, int(Prot.RWX))
            yield Operation("unmap", 0, self.page)
            yield Operation("wrprotect", 0, self.page)

    def after(self, operation: Operation, raws: list[RawEvent]) -> None:
        """Look at what an operation did: after a lost race, the other CPU's change is taken back at once.

        An unlinked table that came about is mostly freed, with the level it was made for.
        """
        if operation.name == "create_unlinked" and self.session.last_page != self.last_page:
            self.last_page = self.session.last_page
            if self.rng.random() < 0.8:
                self.pending.append(Operation("free_unlinked", value=LAST, level=operation.level))
        for raw in raws:
            if raw[0] == CASFAIL:
                place = self._place_of(raw[1])
                if place is not None:
                    self.pending.insert(0, Operation("poke", place[0], level=place[1], value=raw[2]))

    def _place_of(self, entry_pa: int) -> tuple[int, int] | None:
        pgt = self.session.pgt
        if not isinstance(pgt, Stage2) or not pgt.root:
            return None
        page = entry_pa & -self.page
        for table, level, base, _, _ in pgt.tables():
            if table == page:
                return base + (((entry_pa - page) // 8) << pgt.shifts[level]), level
        return None
