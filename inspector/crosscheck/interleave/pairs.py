"""Which operations a kernel lets run at the same time on one table, and the states in which they meet.

From 6.6 on faults take the mmu lock for reading (``user_mem_abort``, ``handle_access_fault`` in mmu.c of 6.6 and
later): map, relax_perms and mkyoung walk SHARED; everything else holds it for writing.  The RCU callback needs no lock.
6.1 holds it for reading for faults while dirty logging is on, and then only relax_perms runs (``user_mem_abort`` of
6.1: ``use_read_lock = logging_perm_fault``): it races with itself.  Up to 5.15 the lock is a spinlock: nothing races.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Final

from inspector.codec import GRANULES
from inspector.generations import Annotation, Generation, WalkFlags
from inspector.model.operations import Operation
from inspector.model.prot import Prot
from inspector.model.session import Setup
from inspector.model.state import HANDLE_FAULT, SHARED

IPA: Final = 0x8000_0000
"""A multiple of a block at each granule (2M, 32M, 512M)."""

PA: Final = 0x1_0000_0000
LOCKED: Final = "a page's entry that another CPU has LOCKED"
BLOCK: Final = "map a block"
ELSEWHERE: Final = 0x2_0000_0000


@dataclass(frozen=True)
class Scenario:
    """``start`` leads to the state called ``state``; then the ``operations`` run at the same time."""

    setup: Setup
    state: str
    start: tuple[Operation, ...]
    operations: tuple[Operation, ...]


def fault_flags(behaviours: Generation) -> int:
    """What a fault passes to map: SHARED, and until 6.18 that it is a fault's."""
    return SHARED if behaviours.wrprotect_ignores_eagain else SHARED | HANDLE_FAULT


def racing(setup: Setup) -> dict[str, Operation]:
    """The operations that may run at the same time, by a name for the reader."""
    behaviours = setup.behaviours
    page = 1 << GRANULES[setup.granule]
    block = page * page // 8
    rw, r, rwx = int(Prot.RW), int(Prot.R), int(Prot.RWX)
    own = fault_flags(behaviours) if behaviours.attr_walk_flags is WalkFlags.CALLER else 0
    relax = {
        "relax_perms": Operation("relax_perms", IPA, prot=rw, flags=own),
        "relax_perms, next page": Operation("relax_perms", IPA + page, prot=rwx, flags=own),
    }
    if not behaviours.shared_walks:
        return relax if behaviours.permission_faults_share_lock else {}
    flags = fault_flags(behaviours)
    return {
        "map a page": Operation("map", IPA, page, PA, rw, cache=8, flags=flags),
        "map it read-only": Operation("map", IPA, page, PA, r, cache=8, flags=flags),
        "map another page there": Operation("map", IPA, page, ELSEWHERE, rwx, cache=8, flags=flags),
        "map the next page": Operation("map", IPA + page, page, PA + page, rw, cache=8, flags=flags),
        "map a page under another table": Operation("map", IPA + block, page, PA, rw, cache=8, flags=flags),
        "map a page, one table left": Operation("map", IPA, page, PA, rw, cache=1, flags=flags),
        BLOCK: Operation("map", IPA, block, PA, rw, cache=8, flags=flags),
        **relax,
        "mkyoung": Operation("mkyoung", IPA, flags=own),
    }


def states(setup: Setup) -> dict[str, tuple[Operation, ...]]:
    """Ways to begin, by name."""
    behaviours = setup.behaviours
    page = 1 << GRANULES[setup.granule]
    block = page * page // 8
    rw, r = int(Prot.RW), int(Prot.R)

    def mapped(addr: int, size: int, pa: int, prot: int) -> Operation:
        return Operation("map", addr, size, pa, prot, cache=8)

    old = Operation("test_clear_young", IPA, page, switch=1) if behaviours.test_clear_young else Operation("mkold", IPA)
    neighbour = mapped(IPA + 3 * page, page, PA, rw)
    found = {
        "an empty tree": (),
        "an empty table": (neighbour, Operation("unmap", IPA + 3 * page, page), neighbour),
        "the page, read-only": (mapped(IPA, page, PA, r),),
        "the page, writable": (mapped(IPA, page, PA, rw),),
        "the page, not accessed": (mapped(IPA, page, PA, r), old),
        "another page": (neighbour, mapped(IPA, page, ELSEWHERE + page, r)),
        "a block": (mapped(IPA, block, PA, r),),
        "a block, not accessed": (mapped(IPA, block, PA, rw), old),
    }
    if behaviours.locked_value:
        locked = Operation("poke", IPA, level=3, value=behaviours.locked_value)
        found[LOCKED] = (neighbour, locked)
        beside = mapped(IPA + block, page, PA, rw)
        found["a block's entry that another CPU has LOCKED"] = (beside, replace(locked, level=2))
    if behaviours.annotation is Annotation.OWNER_BY_INVALID_PA:
        found["an owner's annotation"] = (neighbour, Operation("set_owner", IPA, page, value=1, cache=8))
    elif behaviours.annotation is Annotation.TYPED:
        found["an annotation"] = (neighbour, Operation("annotate", IPA, page, kind=2, value=2, cache=8))
    return found


def scenarios(setup: Setup, count: int = 2) -> Iterator[Scenario]:
    """Every ``count`` operations that may meet, in every state."""
    operations = racing(setup)
    begin = Operation("init")
    for state, start in states(setup).items():
        # A table in which another CPU's entry is LOCKED cannot go while that CPU is inside; here it never leaves.
        meet = [one for name, one in operations.items() if state != LOCKED or name != BLOCK]
        for chosen in combinations_with_replacement(meet, count):
            yield Scenario(setup, state, (begin, *start), chosen)
