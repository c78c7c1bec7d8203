"""The kernel's pgtable.c in the harness does what facts and architecture say, and the harness sees all of it.

Expected values: descriptors and registers from DDI 0487 (D8.3, VTCR_EL2) by hand; orders of events and return
codes read from the kernel's source, release by release.  One set of tests for every kernel source there is.
"""

from __future__ import annotations

import errno
import random
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from inspector import events as ev
from inspector.crosscheck.build import GRANULES, Variant, build
from inspector.crosscheck.harness import (
    AF,
    Harness,
    HarnessFault,
    Inject,
    NoEntry,
    Op,
    Race,
    Raws,
    Replay,
    Unsupported,
    pack,
)
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.tree import PGTABLE, Tree, read_tree
from inspector.findings import Untestable
from inspector.generations import Annotation, Eagain, MapScheme, TableTlbi, generation
from tests.crosscheck.kernels import harness, kernel, labels, tree

pytestmark = pytest.mark.harness

K, M, G = 1 << 10, 1 << 20, 1 << 30
PHYS = 0x4820_0000
IPA = 0x8000_0000


@pytest.fixture(params=labels())
def label(request: pytest.FixtureRequest) -> str:
    """Every kernel whose source is there."""
    name: str = request.param
    return name


@pytest.fixture(params=GRANULES)
def granule(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def h(label: str) -> Iterator[Harness]:
    """A guest's table as on a CPU with FWB: 4K pages, 40 bits of IPA."""
    with harness(label, fwb=True) as made:
        assert made.stage2_init(40)[0] == 0
        yield made


def of_kind(raws: Raws, *kinds: int) -> Raws:
    return [raw for raw in raws if raw[0] in kinds]


def kinds(raws: Raws) -> list[str]:
    return [ev.EVENT_TYPES[raw[0]][0] for raw in raws]


def leaf(h: Harness, ipa: int) -> tuple[int, int, int]:
    """``kvm_pgtable_get_leaf``, or where a kernel has none, what it would give: the entry in which the walk ends."""
    if generation(h.label).get_leaf:
        return h.get_leaf(ipa)
    level = h.info().start_level
    while level < 3 and h.peek(ipa, level) & 3 == 3:
        level += 1
    return 0, h.peek(ipa, level), level


def is_first(label: str) -> bool:
    """5.10, the first release with this file: entries are made invalid by their bit 0 alone, map does no cache
    maintenance, the anchor frees as it goes (kernel.md 1.5)."""
    return generation(label).map_scheme is MapScheme.ANCHOR_IN_PLACE


def fault_flags(harness: Harness) -> int:
    """The walk flags that a fault passes (kernel.md 3.4)."""
    if harness.constant("WALK_SHARED") is None:
        return 0
    return harness.bits("WALK_", "SHARED" + (" HANDLE_FAULT" if harness.constant("WALK_HANDLE_FAULT") else ""))


# ---- descriptors and registers


@pytest.mark.parametrize(
    ("fwb", "prot", "size", "phys", "expected"),
    [
        (True, "rw", 4 * K, 0x4812_3000, 0x0040_0000_4812_37DB),
        (False, "rw", 4 * K, 0x4812_3000, 0x0040_0000_4812_37FF),
        (True, "rw device", 4 * K, 0x0900_0000, 0x0040_0000_0900_07C7),
        (False, "rw device", 4 * K, 0x0900_0000, 0x0040_0000_0900_07C7),
        (True, "r x", 2 * M, 0x4820_0000, 0x0000_0000_4820_0759),
        (True, "rwx", 1 * G, 0x1_0000_0000, 0x0000_0001_0000_07D9),
        (True, "r sw0 sw3", 4 * K, 0x4812_3000, 0x04C0_0000_4812_375B),
    ],
)
def test_leaf_vectors(label: str, fwb: bool, prot: str, size: int, phys: int, expected: int) -> None:
    with harness(label, fwb=fwb) as h:
        h.stage2_init(40)
        if " sw" in prot and not generation(label).software_bits:
            with pytest.raises(Unsupported):
                h.prot(prot)
            return
        assert h.stage2_map(0x40000000, size, phys, h.prot(prot))[0] == 0
        ret, entry, level = leaf(h, 0x40000000)
    assert (ret, hex(entry), level) == (0, hex(expected), {4 * K: 3, 2 * M: 2, 1 * G: 1}[size])


def test_table_vector(label: str) -> None:
    """The first table after a one-page PGD at 0x4800_0000 is at 0x4800_1000."""
    with harness(label, store_pa=0x4800_0000) as h:
        h.stage2_init(39)
        h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
        assert h.peek(0, 1) == 0x4800_1003
        assert [table.references for table in h.dump()] == [2, 2, 2]


def test_normal_nc(label: str) -> None:
    with harness(label, fwb=True) as h:
        h.stage2_init(40)
        if not generation(label).normal_nc:
            with pytest.raises(Unsupported):
                h.prot("rw nc")
            return
        h.stage2_map(0, 4 * K, 0x4812_3000, h.prot("rw nc"))
        assert leaf(h, 0)[1] == 0x0040_0000_4812_37D7
        assert h.stage2_map(0, 4 * K, PHYS, h.prot("rwx nc"))[0] == -errno.EINVAL


def test_two_bit_execute_never(label: str) -> None:
    """XN[1:0] at 54:53 (DDI 0487, FEAT_XNX): 00 both, 01 EL0 only, 10 none, 11 EL1 only; 7.3 writes both
    bits."""
    with harness(label, fwb=True, xnx=True) as h:
        h.stage2_init(40)
        if not generation(label).two_bit_xn:
            assert h.constant("PROT_PX") is None
            return
        for page, (prot, xn) in enumerate([("rwx", 0), ("rw ux", 1), ("rw", 2), ("rw px", 3)]):
            h.stage2_map(page * 4 * K, 4 * K, PHYS, h.prot(prot))
            assert leaf(h, page * 4 * K)[1] >> 53 & 3 == xn
        h.set("xnx", False)
        assert h.stage2_map(G, 4 * K, PHYS, h.prot("rw px"))[0] == -errno.EINVAL


@pytest.mark.parametrize(("granule_", "vtcr"), [("4k", 0x802D_3558), ("16k", 0x802D_B558), ("64k", 0x802D_7558)])
def test_vtcr(label: str, granule_: str, vtcr: int) -> None:
    """40 bits of IPA, 48 of PA, 16-bit VMID, hardware access flag (DDI 0487, VTCR_EL2)."""
    with harness(label, granule_) as h:
        h.stage2_init(40)
        assert hex(h.info().vtcr) == hex(vtcr)
        h.set("no_ha", True)
        h.stage2_init(40, vmid_bits=8)
        erratum = 0 if is_first(label) else 1 << 21
        assert hex(h.info().vtcr) == hex(vtcr & ~erratum & ~(1 << 19)), "5.10 knows of no CPU that must do without HA"


@pytest.mark.parametrize(
    ("ia_bits", "shapes"),
    [
        # start level and concatenated root tables for 4K, 16K, 64K: DDI 0487 D8.2.2, at least two levels
        (32, ((2, 4), (2, 1), (2, 1))),
        (36, ((1, 1), (2, 1), (2, 1))),
        (39, ((1, 1), (2, 8), (2, 1))),
        (40, ((1, 2), (2, 16), (2, 1))),
        (42, ((1, 8), (1, 1), (2, 1))),
        (43, ((1, 16), (1, 1), (2, 2))),
        (44, ((0, 1), (1, 1), (2, 4))),
        (48, ((0, 1), (1, 2), (1, 1))),
    ],
)
def test_geometry(label: str, granule: str, ia_bits: int, shapes: tuple[tuple[int, int], ...]) -> None:
    level, pages = shapes[list(GRANULES).index(granule)]
    with harness(label, granule) as h:
        _, raws = h.stage2_init(ia_bits)
        info = h.info()
        assert (info.start_level, info.root_pages, info.outstanding) == (level, pages, pages)
        assert (info.vtcr >> 6) & 3 == (2 if granule == "4k" else 3) - level
        assert info.pgd % (pages * h.page_size) == 0
        assert raws == [(ev.ALLOC_EXACT, info.pgd, pages * h.page_size), (ev.BARRIER, "ishst")]
        top = (1 << ia_bits) - h.page_size
        assert h.stage2_map(top, h.page_size, PHYS & -h.page_size, h.prot("r"))[0] == 0
        assert h.stage2_map(top, 2 * h.page_size, 0, h.prot("r"))[0] == -errno.ERANGE
        assert h.dump()[pages - 1].entries, "the last root page holds the last address"


@pytest.mark.parametrize(("granule_", "shape"), [("4k", (0, 16)), ("16k", (0, 1))])
def test_lpa2(label: str, granule_: str, shape: tuple[int, int]) -> None:
    """52-bit addresses with 4K and 16K pages: PA[51:50] in bits 9:8 of tables and leaves, no shareability
    there."""
    with harness(label, granule_, fwb=True, lpa2=True, store_pa=0xC_0000_4000_0000) as h:
        h.stage2_init(52, pa_bits=52)
        info = h.info()
        if not generation(label).lpa2:
            assert (info.vtcr >> 32 & 1, info.vtcr >> 16 & 7) == (0, 5), "these kernels know no LPA2"
            return
        assert (info.start_level, info.root_pages) == shape
        assert info.vtcr >> 32 & 1, "VTCR_EL2.DS"
        assert info.vtcr >> 16 & 7 == 6, "VTCR_EL2.PS, 52 bits"
        ipa = (1 << 52) - h.page_size
        assert h.stage2_map(ipa, h.page_size, 0xB_2345_6789_0000 & -h.page_size, h.prot("rw"))[0] == 0
        entry = leaf(h, ipa)[1]
        assert entry & 0x3FF == 0x2DB, "PA[51:50] = 2, read and write, normal memory"
        assert entry >> 12 & 0x3F_FFFF_FFFF == 0xB_2345_6789_0000 >> 12 & 0x3F_FFFF_FFFF
        assert h.peek(ipa, info.start_level) & 0x3FF == 0x303, "a table at PA[51:50] = 3"
        h.stage2_unmap(ipa, h.page_size)
        assert len(h.outstanding()) == info.root_pages


def test_64k_pages_52_bits(label: str) -> None:
    """PA[51:48] of a 64K descriptor is in bits 15:12."""
    with harness(label, "64k", fwb=True) as h:
        h.stage2_init(52, pa_bits=52)
        assert (h.info().start_level, h.info().root_pages) == (1, 1)
        h.stage2_map(0, 64 * K, 0xA_1234_5678_0000, h.prot("rw"))
        assert hex(leaf(h, 0)[1]) == hex(0x0040_1234_5678_A7DB)


# ---- events


def test_map_of_a_page(h: Harness, label: str) -> None:
    """Two tables and a page; since 6.6 a break (LOCKED) precedes every make, and the reference precedes the
    store."""
    ret, raws = h.stage2_map(IPA, 4 * K, PHYS, h.prot("rw"))
    assert ret == 0
    locked = h.constant("LOCKED")
    pgd = h.info().pgd
    l2, l3 = (table.pa for table in h.dump()[1:3])
    leaf = PHYS | 0x0040_0000_0000_07DB
    entry = (pgd + 8 * (IPA >> 30), l2, l3)
    cache = (ev.CACHE, "dcache", PHYS, 4096)
    if locked is None:
        expected = [
            (ev.ALLOC, l2),
            (ev.STORE, entry[0], 0, l2 | 3, 1, 0),
            (ev.GET, pgd),
            (ev.ALLOC, l3),
            (ev.STORE, entry[1], 0, l3 | 3, 1, 0),
            (ev.GET, l2),
            *([] if is_first(label) else [cache]),
            (ev.STORE, entry[2], 0, leaf, 1, 0),
            (ev.GET, l3),
        ]
    else:
        expected = [
            (ev.ALLOC, l2),
            (ev.STORE, entry[0], 0, locked, 0, 0),
            (ev.GET, pgd),
            (ev.STORE, entry[0], locked, l2 | 3, 1, 0),
            (ev.ALLOC, l3),
            (ev.STORE, entry[1], 0, locked, 0, 0),
            (ev.GET, l2),
            (ev.STORE, entry[1], locked, l3 | 3, 1, 0),
            (ev.STORE, entry[2], 0, locked, 0, 0),
            cache,
            (ev.GET, l3),
            (ev.STORE, entry[2], locked, leaf, 1, 0),
        ]
    assert raws == [*expected, (ev.BARRIER, "ishst")]


def test_executable_map_invalidates_the_instruction_cache(h: Harness, label: str) -> None:
    """In 5.10 that is user_mem_abort's business."""
    _, raws = h.stage2_map(0, 2 * M, PHYS, h.prot("rwx"))
    if is_first(label):
        assert not of_kind(raws, ev.CACHE)
        return
    assert of_kind(raws, ev.CACHE) == [(ev.CACHE, "dcache", PHYS, 2 * M), (ev.CACHE, "icache", PHYS, 2 * M)]


def test_unmap_order(label: str) -> None:
    """Store, invalidation, reference, then the cache without FWB; tables after their entries, without FWB
    too."""
    hints = {TableTlbi.UNKNOWN: (ev.TTL_UNKNOWN,) * 2, TableTlbi.ZERO: (0, 0), TableTlbi.OWN_LEVEL: (2, 1)}
    of_l2, of_l1 = hints[generation(label).unmap_table_tlbi]
    gone = -2 if is_first(label) else 0
    with harness(label, fwb=False) as h:
        h.stage2_init(40)
        h.stage2_map(IPA, 4 * K, PHYS, h.prot("rw"))
        pgd, _, l2, l3 = (table.pa for table in sorted(h.dump(), key=lambda table: table.level))
        entry = pgd + 8 * (IPA >> 30)
        ret, raws = h.stage2_unmap(IPA, 4 * K)
    assert ret == 0
    assert raws == [
        (ev.STORE, l3, PHYS | 0x0040_0000_0000_07FF, (PHYS | 0x0040_0000_0000_07FF) & gone, 0, 0),
        (ev.TLBI, "ipa", IPA, 3, None),
        (ev.PUT, l3, 1),
        (ev.CACHE, "dcache", PHYS, 4096),
        (ev.STORE, l2, l3 | 3, (l3 | 3) & gone, 0, 0),
        (ev.TLBI, "ipa", IPA, of_l2, None),
        (ev.PUT, l2, 1),
        (ev.PUT, l3, 0),
        (ev.FREE, l3),
        (ev.STORE, entry, l2 | 3, (l2 | 3) & gone, 0, 0),
        (ev.TLBI, "ipa", IPA, of_l1, None),
        (ev.PUT, pgd, 1),
        (ev.PUT, l2, 0),
        (ev.FREE, l2),
    ]


def test_unmap_defers_leaf_invalidation(label: str) -> None:
    """With FWB and TLB range instructions the leaves are invalidated once, after the walk (6.6+), tables
    still each."""
    with harness(label, fwb=True, tlb_range=True) as h:
        h.stage2_init(40)
        h.stage2_map(IPA, 16 * K, PHYS, h.prot("rw"))
        _, raws = h.stage2_unmap(IPA, 16 * K)
    flushes = [(raw[1], raw[4]) for raw in of_kind(raws, ev.TLBI)]
    if not generation(label).unmap_deferred_range:
        assert flushes == [("ipa", None)] * 6
    else:
        assert flushes == [("ipa", None)] * 2 + [("range", 4)]
        assert raws[-1] == (ev.TLBI, "range", IPA, None, 4)


def test_range_flush_in_chunks(label: str) -> None:
    """One range helper call takes at most 2,097,152 pages (DDI 0487, TLBI RIPAS2E1IS: SCALE and NUM)."""
    with harness(label, fwb=True, tlb_range=True) as h:
        h.stage2_init(40)
        _, raws = h.stage2_unmap(0, 20 * G)
    if not generation(label).unmap_deferred_range:
        assert raws == []
    else:
        assert raws == [
            (ev.TLBI, "range", 0, None, 1 << 21),
            (ev.TLBI, "range", 8 * G, None, 1 << 21),
            (ev.TLBI, "range", 16 * G, None, 1 << 20),
        ]


def test_block_over_table(h: Harness, label: str) -> None:
    """Collapse: by the anchor until 6.1 (the table is dismantled in the walk), later replaced and freed by
    RCU."""
    h.stage2_map(0, 4 * K, PHYS, h.prot("rw"))
    pgd, l2, l3 = _chain(h, 0)
    ret, raws = h.stage2_map(0, 2 * M, PHYS, h.prot("rw"))
    block, table = PHYS | 0x0040_0000_0000_07D9, l3 | 3
    assert ret == 0
    assert leaf(h, 0) == (0, block, 2)
    locked = h.constant("LOCKED")
    if is_first(label):
        assert raws == [
            (ev.STORE, l2, table, table & ~1, 0, 0),
            (ev.TLBI, "vmid", None, None, None),
            (ev.PUT, l3, 1),
            (ev.PUT, l3, 0),
            (ev.FREE, l3),
            (ev.PUT, l2, 1),
            (ev.STORE, l2, table & ~1, block, 1, 0),
            (ev.GET, l2),
            (ev.BARRIER, "ishst"),
        ]
    elif locked is None:
        assert raws == [
            (ev.STORE, l2, table, 0, 0, 0),
            (ev.TLBI, "vmid", None, None, None),
            (ev.PUT, l3, 1),
            (ev.CACHE, "dcache", PHYS, 2 * M),
            (ev.STORE, l2, 0, block, 1, 0),
            (ev.GET, l2),
            (ev.PUT, l3, 0),
            (ev.FREE, l3),
            (ev.PUT, l2, 2),
            (ev.BARRIER, "ishst"),
        ]
        assert h.deferred() == []
    else:
        assert raws == [
            (ev.STORE, l2, table, locked, 0, 0),
            (ev.TLBI, "vmid", None, None, None),
            (ev.PUT, l2, 1),
            (ev.CACHE, "dcache", PHYS, 2 * M),
            (ev.GET, l2),
            (ev.STORE, l2, locked, block, 1, 0),
            (ev.DEFER, l3, 2),
            (ev.BARRIER, "ishst"),
        ]
        assert h.deferred() == [(l3, 2)]
        assert h.dump(l3, 3)[0].references == 2, "readable with its content until the grace period ends"
        assert h.rcu() == (1, [(ev.PUT, l3, 1), (ev.PUT, l3, 0), (ev.FREE, l3)])
    assert sorted(h.outstanding()) == [pgd, pgd + 4 * K, l2]


def _chain(h: Harness, ipa: int) -> tuple[int, int, int]:
    """The tables that translate ``ipa``: PGD, level 2, level 3."""
    pgd = h.info().pgd
    l2 = h.peek(ipa, 1) & ~0xFFF
    return pgd, l2, h.peek(ipa, 2) & ~0xFFF


def test_span_flush_by_range(label: str) -> None:
    """An evicted table is flushed over the span of its entry, by range where the CPU can (6.6+)."""
    with harness(label, fwb=True, tlb_range=True) as h:
        h.stage2_init(40)
        h.stage2_map(2 * M, 4 * K, PHYS, h.prot("rw"))
        _, raws = h.stage2_map(2 * M, 2 * M, PHYS, h.prot("rw"))
    unlinks = generation(label).map_scheme is MapScheme.UNLINK
    expected = (ev.TLBI, "range", 2 * M, None, 512) if unlinks else (ev.TLBI, "vmid", None, None, None)
    assert of_kind(raws, ev.TLBI) == [expected]


def test_table_over_block(h: Harness) -> None:
    """A page mapped into a block loses the rest of the block: it is faulted back lazily."""
    h.stage2_map(0, 2 * M, PHYS, h.prot("rw"))
    ret, raws = h.stage2_map(0x5000, 4 * K, PHYS, h.prot("rw"))
    assert ret == 0
    assert of_kind(raws, ev.TLBI) == [(ev.TLBI, "ipa", 0x5000, 2, None)]
    assert leaf(h, 0x5000)[2] == 3
    assert leaf(h, 0x6000)[1:] == (0, 3)


def test_permission_only_map_is_refused(h: Harness, label: str) -> None:
    """-EAGAIN reaches the caller always in 6.1, from a fault in 6.6 to 6.18, unless ignored in 7.3; 5.10 replaces."""
    h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    before = h.dump()
    if is_first(label):
        ret, raws = h.stage2_map(0, 4 * K, PHYS, h.prot("rwx"))
        assert (ret, kinds(raws)) == (0, ["put", "store", "tlbi", "store", "get", "barrier"])
        return
    quiet = 0 if generation(label).eagain is Eagain.STOPS_IN_FAULT else -errno.EAGAIN
    assert h.stage2_map(0, 4 * K, PHYS, h.prot("rwx")) == (quiet, [(ev.BARRIER, "ishst")])
    assert h.stage2_map(0, 4 * K, PHYS, h.prot("rw"), flags=fault_flags(h))[0] == -errno.EAGAIN
    if h.constant("WALK_IGNORE_EAGAIN"):
        assert h.stage2_map(0, 4 * K, PHYS, h.prot("rw"), flags=h.bits("WALK_", "IGNORE_EAGAIN"))[0] == 0
    assert h.dump() == before


def test_software_bits_only(h: Harness, label: str) -> None:
    """6.12+: a walk that is not shared stores them without break-before-make; before that it is a full
    replacement."""
    h.stage2_map(0, 4 * K, PHYS, h.prot("rw"))
    if not generation(label).software_bits:
        with pytest.raises(Unsupported):
            h.prot("rw sw1")
        return
    ret, raws = h.stage2_map(0, 4 * K, PHYS, h.prot("rw sw1"))
    assert ret == 0
    assert leaf(h, 0)[1] >> 55 & 0xF == 2
    if generation(label).software_bits_store:
        assert kinds(raws) == ["store", "barrier"]
    else:
        assert kinds(raws) == ["store", "tlbi", "put", "cache", "store", "get", "barrier"]


def test_relax_perms(h: Harness, label: str) -> None:
    helper = "ipa_nsh" if generation(label).relax_local_tlbi else "ipa"
    h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    flags = fault_flags(h)
    ret, raws = h.stage2_relax_perms(0, h.prot("rw"), flags)
    assert ret == 0
    assert of_kind(raws, ev.TLBI) == [(ev.TLBI, helper, 0, 3, None)]
    assert leaf(h, 0)[1] & 0xC0 == 0xC0
    ret, raws = h.stage2_relax_perms(0, h.prot("rx"), flags)
    if generation(label).attr_icache:
        assert kinds(raws) == ["cache", "store", "tlbi"]
        assert raws[0][1] == "icache"
    else:
        assert kinds(raws) == ["store", "tlbi"]
    ret, raws = h.stage2_relax_perms(64 * G, h.prot("rw"), flags)
    if not generation(label).attr_invalid_eagain:
        assert (ret, raws) == (0, [(ev.TLBI, helper, 64 * G, 0, None)])
    else:
        assert (ret, raws) == (-errno.EAGAIN, [(ev.TLBI, helper, 64 * G, ev.TTL_UNKNOWN, None)])
    if generation(label).software_bits:
        assert h.stage2_relax_perms(0, h.prot("sw0"), flags) == (-errno.EINVAL, [])


def test_access_flag(h: Harness, label: str) -> None:
    h.stage2_map(0, 8 * K, PHYS, h.prot("rw"))
    young_leaf = leaf(h, 0)[1]
    if not generation(label).test_clear_young:
        assert h.stage2_is_young(0)[0] == 1
        old, raws = h.stage2_mkold(0)
        assert old == young_leaf
        assert kinds(raws) == ["store"]
        assert h.stage2_is_young(0) == (0, [])
        with pytest.raises(Unsupported):
            h.stage2_test_clear_young(0, 4 * K, True)
    else:
        assert h.stage2_test_clear_young(0, 8 * K, False) == (1, [])
        young, raws = h.stage2_test_clear_young(0, 8 * K, True)
        assert (young, kinds(raws)) == (1, ["store", "store"])
        assert h.stage2_test_clear_young(0, 8 * K, True) == (0, [])
        with pytest.raises(Unsupported):
            h.stage2_mkold(0)
    assert leaf(h, 0)[1] == young_leaf & ~AF
    old, raws = h.stage2_mkyoung(0, fault_flags(h))
    assert old == (young_leaf & ~AF if generation(label).mkyoung_returns_pte else 0)
    assert kinds(raws) == ["store", "barrier"]
    assert raws[0][5] == int(generation(label).shared_walks), "a shared walk stores by cmpxchg"
    assert leaf(h, 0)[1] == young_leaf


def test_wrprotect_and_flush(label: str) -> None:
    with harness(label, fwb=False) as h:
        h.stage2_init(40)
        h.stage2_map(0, 8 * K, PHYS, h.prot("rw"))
        h.stage2_map(4 * M, 4 * K, 0x0900_0000, h.prot("rw device"))
        ret, raws = h.stage2_flush(0, 1 * G)
        assert ret == 0
        assert raws == [(ev.CACHE, "dcache", PHYS, 4096), (ev.CACHE, "dcache", PHYS + 4096, 4096)]
        ret, raws = h.stage2_wrprotect(0, 1 * G)
        assert (ret, kinds(raws)) == (0, ["store"] * 3)
        assert [leaf(h, ipa)[1] & 0xC0 for ipa in (0, 4 * K, 4 * M)] == [0x40] * 3
        h.set("fwb", True)
        assert h.stage2_flush(0, 1 * G) == (0, [])


def test_split(h: Harness, label: str) -> None:
    """A block becomes 512 pages: built aside without invalidation, then one break and make."""
    h.stage2_map(0, 2 * M, PHYS, h.prot("rx sw2" if generation(label).software_bits else "rx"))
    if not generation(label).split:
        with pytest.raises(Unsupported):
            h.stage2_split(0, 2 * M)
        return
    block = leaf(h, 0)[1]
    _, l2, _ = _chain(h, 0)
    assert h.stage2_split(0, 2 * M, mc=0)[0] == -errno.ENOMEM
    ret, raws = h.stage2_split(0, 2 * M, mc=1)
    l3 = h.peek(0, 2) & ~0xFFF
    assert ret == 0
    assert kinds(raws) == ["alloc", *["store", "get", "store"] * 512, "store", "tlbi", "put", "get", "store", "barrier"]
    assert of_kind(raws, ev.TLBI) == [(ev.TLBI, "ipa", 0, 2, None)]
    assert raws[-2] == (ev.STORE, l2, h.constant("LOCKED"), l3 | 3, 1, 0)
    assert h.outstanding()[l3] == 513
    assert [leaf(h, page * 4 * K)[1] for page in (0, 511)] == [block | 2, (block | 2) + 511 * 4 * K]


def test_create_and_free_unlinked(h: Harness, label: str) -> None:
    if not generation(label).split:
        with pytest.raises(Unsupported):
            h.stage2_create_unlinked(PHYS, 2, h.prot("rw"))
        return
    before = h.outstanding()
    table, raws = h.stage2_create_unlinked(1 * G, 1, h.prot("rw"), mc=513, force_pte=True)
    assert table > 0
    assert not of_kind(raws, ev.TLBI, ev.CACHE)
    tree = h.dump(table, 2)
    assert (len(tree), tree[0].references) == (513, 513)
    assert h.stage2_free_unlinked(table, 1)[0] == 0
    assert h.outstanding() == before
    assert h.stage2_create_unlinked(PHYS + 4096, 2, h.prot("rw"))[0] == -errno.EINVAL
    assert h.stage2_create_unlinked(1 * G, 1, h.prot("rw"), mc=7, force_pte=True)[0] == -errno.ENOMEM
    assert h.outstanding() == before
    with pytest.raises(NoEntry):
        h.stage2_free_unlinked(table, 1)


def test_owner_annotations(h: Harness, label: str) -> None:
    """Owner 1 is entry 0x4 until 6.18; in 7.3 the type is in bits 63:60 and type 1 is reserved for LOCKED."""
    if generation(label).annotation is Annotation.NONE:
        with pytest.raises(Unsupported):
            h.stage2_set_owner(0x5000, 4 * K, 1)
        return
    if generation(label).annotation is not Annotation.TYPED:
        assert h.stage2_set_owner(0x5000, 4 * K, 2)[0] == -errno.EINVAL
        ret, raws = h.stage2_set_owner(0x5000, 4 * K, 1)
        value = 0x4
    else:
        assert h.stage2_annotate(0x5000, 4 * K, 1, 2)[0] == -errno.EINVAL
        assert h.stage2_annotate(0x5000, 4 * K, 2, 1)[0] == -errno.EINVAL
        ret, raws = h.stage2_annotate(0x5000, 4 * K, 2, 2)
        value = 0x2000_0000_0000_0002
    assert ret == 0
    assert leaf(h, 0x5000) == (0, value, 3)
    assert not of_kind(raws, ev.TLBI)
    ret, raws = h.stage2_unmap(0x5000, 4 * K)
    assert kinds(raws)[:2] == ["store", "put"], "an annotation goes without invalidation"
    assert h.info().outstanding == 2


def test_force_pte(label: str) -> None:
    with harness(label, fwb=True) as h:
        h.stage2_init(40, force_pte=True)
        h.stage2_map(0, 2 * M, PHYS, h.prot("rw"))
        assert leaf(h, 0)[2] == (2 if is_first(label) else 3), "5.10 has no such callback"
        h.set("force_pte", False)
        h.stage2_map(2 * M, 2 * M, PHYS, h.prot("rw"))
        assert leaf(h, 2 * M)[2] == 2


def test_hyp_stage1(label: str, granule: str) -> None:
    """EL2's own table: normal memory is MAIR index 0, device 4 (5.10: MT_DEVICE_nGnRE, 5); AP[2:1] = 01 read-write, 11
    read-only; XN is bit 54."""
    with harness(label, granule) as h:
        size = h.page_size
        assert h.hyp_init(48)[0] == 0
        start = h.info().outstanding
        assert h.hyp_map(0, size, PHYS & -size, h.prot("rw"))[0] == 0
        assert h.hyp_map(size, size, 0x0900_0000, h.prot("rw device"))[0] == 0
        assert h.hyp_map(2 * size, size, PHYS & -size, h.prot("r x"))[0] == 0
        assert h.hyp_map(3 * size, size, PHYS & -size, h.prot("rwx"))[0] == -errno.EINVAL
        attributes = [leaf(h, page * size)[1] & (0xFFE0_0000_0000_0000 | 0xFFF) for page in range(3)]
        device = 0x0040_0000_0000_0743 | generation(label).hyp_device_index << 2
        assert attributes == [0x0040_0000_0000_0743, device, 0x7C3]
        if is_first(label):
            with pytest.raises(Unsupported):
                h.hyp_unmap(0, 3 * size)
            h.hyp_destroy()
            assert h.outstanding() == {}
            return
        unmapped, raws = h.hyp_unmap(0, 3 * size)
        assert unmapped == 3 * size
        assert h.info().outstanding == start
        leaves = [raw[2] for raw in raws if raw[:2] == (ev.TLBI, "vale2is")]
        assert leaves == [0, size, 2 * size]
        assert kinds(raws)[:6] == ["store", "barrier", "tlbi", "barrier", "barrier", "put"]
        h.hyp_destroy()
        assert h.outstanding() == {}


def test_hyp_build_refuses_shared_walks(label: str) -> None:
    lib = kernel(label).library(hyp=True)
    with Harness(lib, fwb=True) as h:
        h.stage2_init(40)
        expected = 0 if h.constant("WALK_SHARED") is None else -errno.EPERM
        assert h.stage2_map(0, 4 * K, PHYS, h.prot("r"), flags=fault_flags(h))[0] == expected


# ---- injected faults


def test_every_allocation_can_fail(label: str, granule: str) -> None:
    """What was done before the failure stays, empty tables included."""
    with harness(label, granule, fwb=True) as h:
        h.stage2_init(48)
        roots = h.info().root_pages
        tables = 3 - h.info().start_level
        for failing in range(1, tables + 1):
            ipa = failing << 46
            h.inject = Inject(fail_alloc=failing)
            before = h.info().outstanding
            ret, raws = h.stage2_map(ipa, h.page_size, PHYS & -h.page_size, h.prot("r"))
            assert ret == -errno.ENOMEM
            assert kinds(raws)[-2:] == ["allocfail", "barrier"]
            assert h.info().outstanding == before + failing - 1
            assert h.stage2_map(ipa, h.page_size, PHYS & -h.page_size, h.prot("r"), mc=tables - failing)[0] == (
                -errno.ENOMEM
            )
            assert h.stage2_map(ipa, h.page_size, PHYS & -h.page_size, h.prot("r"), mc=1)[0] == 0
        assert h.stage2_map(0, h.page_size, 0, h.prot("r"), mc=None) == (-errno.ENOMEM, [(ev.BARRIER, "ishst")])
        assert h.stage2_unmap(0, 1 << 48)[0] == 0
        assert h.info().outstanding == roots
    with harness(label, granule) as h:
        h.inject = Inject(fail_alloc=1)
        assert h.stage2_init(40) == (-errno.ENOMEM, [(ev.ALLOCFAIL,)])


def test_lost_cmpxchg(h: Harness, label: str) -> None:
    """Hardware sets AF between the read and the store: the walk gives up and the guest retries."""
    h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    if not generation(label).shared_walks:
        h.inject = Inject(lose_cas=1)
        _, raws = h.stage2_relax_perms(0, h.prot("rw"))
        assert not of_kind(raws, ev.CASFAIL), "these kernels have no shared walks"
        return
    h.stage2_test_clear_young(0, 4 * K, True)
    old = leaf(h, 0)[1]
    entry = _chain(h, 0)[2]
    h.inject = Inject(lose_cas=1, race=Race.SET, value=AF)
    ret, raws = h.stage2_relax_perms(0, h.prot("rw"), fault_flags(h))
    assert ret == -errno.EAGAIN
    assert raws == [(ev.CASFAIL, entry, old, old | 0x80), (ev.TLBI, "ipa_nsh", 0, ev.TTL_UNKNOWN, None)]
    assert leaf(h, 0)[1] == old | AF
    h.inject = Inject(lose_cas=2, race=Race.VALUE, value=h.bits("", "LOCKED"))
    ret, raws = h.stage2_map(8 * G, 4 * K, PHYS, h.prot("r"), flags=fault_flags(h))
    assert ret == -errno.EAGAIN
    assert kinds(raws) == ["alloc", "store", "get", "store", "alloc", "casfail", "put", "free", "barrier"]


def test_entry_found_locked(h: Harness, label: str) -> None:
    locked = h.constant("LOCKED")
    if locked is None:
        assert not generation(label).locked_mask
        return
    h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    h.poke(0, 3, locked, references=-1)
    ret, raws = h.stage2_map(0, 4 * K, PHYS, h.prot("r"), flags=fault_flags(h))
    assert (ret, raws) == (-errno.EAGAIN, [(ev.BARRIER, "ishst")])
    _, raws = h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    assert (ev.WARN,) in raws, "a walk that has the table to itself must not meet it"
    assert h.poke(0, 3, 0) == locked


def test_foreign_reference_keeps_a_table(h: Harness) -> None:
    """unmap leaves a table whose count is not 1: with a speculative reference it stays, empty."""
    h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    assert h.reference(0, 3, +1) == 3
    old = leaf(h, 0)[1]
    h.stage2_unmap(0, 4 * K)
    assert leaf(h, 0) == (0, old & ~1 if is_first(h.label) else 0, 3)
    assert h.reference(0, 3, -1) == 1
    h.stage2_unmap(0, 4 * K)
    assert leaf(h, 0)[2] == 1


def test_use_of_a_freed_page_is_noticed(h: Harness) -> None:
    h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    h.reference(0, 3, -1)
    with pytest.raises(HarnessFault):
        h.stage2_unmap(0, 4 * K)


def test_a_wild_pointer_ends_the_operation_only(h: Harness) -> None:
    """A table entry that points to guest memory: the kernel's code follows it, and would crash as well."""
    h.stage2_map(0, 4 * K, PHYS, h.prot("r"))
    h.poke(0, 2, 0x7_0000_0003)
    with pytest.raises(HarnessFault, match="wild pointer"):
        h.stage2_unmap(0, 4 * K)
    with harness(h.label) as other:
        assert other.stage2_init(40)[0] == 0


def test_no_such_entry(h: Harness) -> None:
    for level in (0, 2):
        with pytest.raises(NoEntry):
            h.peek(0, level)
    with pytest.raises(NoEntry):
        h.poke(1 << 40, 1, 0)


# ---- the harness sees all of it


def _random_ops(h: Harness, rng: random.Random, count: int) -> list[bytes]:
    """Operations over a few places whose ranges overlap, blocks and pages, all flags and faults that are
    legal."""
    page, block = h.page_size, 1 << {"4k": 21, "16k": 25, "64k": 29}[h.granule]
    spots = [0, page, 3 * page, block - page, block, block + page, 2 * block, 1 << 38]
    ops = []
    shared = fault_flags(h)
    for _ in range(count):
        addr, size = rng.choice(spots), rng.choice([page, 2 * page, block, 2 * block])
        phys = rng.choice([0x4_0000_0000, 0x4_0000_0000 + page])
        last = "rx sw1" if generation(h.label).software_bits else "rx"
        prot = h.prot(rng.choice(["r", "rw", "rwx", "rw device", last]))
        flags = rng.choice([0, shared])
        mc = rng.choice([None, 0, 1, 2, 600, 9000])
        inject = Inject(fail_alloc=rng.choice([0, 0, 0, 1, 2, 3]))
        kind = rng.choice(
            [Op.MAP, Op.MAP, Op.MAP, Op.UNMAP, Op.WRPROTECT, Op.RELAX_PERMS, Op.MKYOUNG, Op.FLUSH, Op.RCU]
        )
        if kind is Op.MAP:
            ops.append(pack(kind, addr=addr, size=size, phys=phys, prot=prot, mc=mc, flags=flags, inject=inject))
        else:
            ops.append(pack(kind, addr=addr, size=size, prot=h.prot("rwx"), flags=shared))
        if h.constant("WALK_SHARED") and rng.random() < 0.15:
            ops.append(pack(Op.SPLIT, addr=addr, size=size, mc=mc or 0))
    return ops


@pytest.mark.parametrize("seed", range(4))
def test_stores_explain_every_change(label: str, granule: str, seed: int) -> None:
    """The logged stores alone make the tables what they are, references are one per entry plus one, and
    nothing is left after destroy: no store, reference or allocation of the kernel's code escapes the log."""
    rng = random.Random(seed)
    with harness(label, granule, fwb=bool(seed & 1), tlb_range=bool(seed & 2), reuse=bool(seed & 1)) as h:
        replay = Replay(h.page_size)
        replay.take(h.stage2_init(40)[1])
        for op in _random_ops(h, rng, 150 if granule == "4k" else 40):
            h.run([op])
            raws = h.events()
            replay.take(raws)
            assert (ev.WARN,) not in raws
            for table in h.dump():
                assert table.entries == replay.pages[table.pa]
                held = sum(entry & 1 for entry in table.entries.values()) if is_first(label) else len(table.entries)
                assert table.references == 1 + held
            if len(raws) < 100:
                assert h.text().splitlines()[1:-1] == [ev.format_raw(raw) for raw in raws[1:-1]]
        replay.take(h.rcu()[1])
        assert set(h.outstanding()) == {table.pa for table in h.dump()}, "nothing leaked"
        replay.take(h.stage2_destroy()[1])
        assert not h.outstanding()
        assert not replay.pages


def test_a_script_in_one_call(h: Harness, label: str) -> None:
    """Many operations in one call give what they give one by one, and each result names its own events."""
    ops = _random_ops(h, random.Random(7), 400)
    results = h.run(ops)
    raws, tables = h.events(), h.dump()
    with harness(label, fwb=True) as other:
        other.stage2_init(40)
        for op, result in zip(ops, results, strict=True):
            (alone,) = other.run([op])
            own = raws[result.first_event : result.first_event + result.event_count]
            assert (alone.ret, other.events()) == (result.ret, own)
        assert other.dump() == tables
    _, raws = h.stage2_wrprotect(0x1000, 4 * K)
    call, *effects, ret = h.text().splitlines()
    arguments = "addr=0x1000,size=0x1000,phys=0x0,prot=0x0,flags=0x0"
    assert ev.parse_raw(call) == (ev.CALL, "kvm_pgtable_stage2_wrprotect", arguments)
    assert [ev.parse_raw(line) for line in effects] == raws
    assert ev.parse_raw(ret) == (ev.RET, 0)


# ---- building


def _write(tree: Tree, folder: Path) -> Path:
    for name, text in tree.text.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_directory_a_tarball_and_a_package_are_the_same_tree(tmp_path: Path) -> None:
    true = tree(labels()[-1])
    small = _write(true, tmp_path / "linux-source-x")
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "usr" / "src").mkdir(parents=True)
    control = "Package: linux-source-x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    (package / "DEBIAN" / "control").write_text(control)
    archive = package / "usr" / "src" / "linux-source-x.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(small, small.name)
    subprocess.run(["dpkg-deb", "--build", package, tmp_path / "x.deb"], check=True, capture_output=True)
    for source in (small, archive, tmp_path / "x.deb"):
        assert read_tree(source, tmp_path / "cache").text == true.text


def test_a_tree_is_built_once_whatever_it_is_called(tmp_path: Path) -> None:
    label = labels()[-1]
    one, other = (Kernel(name, tree(label), label, tmp_path / "builds") for name in ("x", "y"))
    path = one.library().path
    made = path.stat().st_mtime_ns
    assert other.library().path == path
    assert path.stat().st_mtime_ns == made
    text = tree(label).text
    name = "arch/arm64/kvm/hyp/pgtable.c"
    touched = Tree("x", {**text, name: text[name] + "/* x */"})
    assert Kernel("z", touched, label, tmp_path / "builds").library().path != path
    assert sorted(each.name for each in (tmp_path / "builds").iterdir()) == sorted(
        {path.parent.name, Kernel("z", touched, label, tmp_path / "builds").library().path.parent.name}
    )


def test_a_file_that_does_not_compile_is_explained(tmp_path: Path) -> None:
    label = labels()[-1]
    text = tree(label).text
    name = "arch/arm64/kvm/hyp/pgtable.c"
    wrong = Tree("x", {**text, name: text[name] + "\nvoid f(void) { no_such_helper(); }\n"})
    with pytest.raises(Untestable, match=r"\(4k\): neither the shims nor .* have no_such_helper; .*no_such_helper"):
        Kernel("wrong", wrong, label, tmp_path / "builds").library()
    assert not list((tmp_path / "builds").iterdir())


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("kvm_new_helper", "kvm_new_helper(pgt);"),
        ("KVM_NEW_FLAG", "pgt->flags |= KVM_NEW_FLAG;"),
        ("new_member", "pgt->new_member = 0;"),
        ("kvm_new_t", "kvm_new_t one = {0}; (void)one;"),
        ("asm/kvm_new.h", ""),
    ],
)
def test_what_the_shims_lack_is_named(tmp_path: Path, name: str, written: str) -> None:
    """A function, a constant, a member, a type, a header that a newer tree has."""
    true = tree(labels()[-1])
    text = true.text[PGTABLE]
    if name.endswith(".h"):
        text = f"#include <{name}>\n{text}"
    else:
        text += f"\nvoid newer(struct kvm_pgtable *pgt);\nvoid newer(struct kvm_pgtable *pgt) {{ {written} }}\n"
    newer = replace(true, text={**true.text, PGTABLE: text})
    with pytest.raises(Untestable, match=rf"neither the shims nor what is compiled of the tree have {name}; "):
        build(newer, Variant("4k"), tmp_path)


def test_an_event_has_its_line_in_the_kernels_source() -> None:
    """Asked for, each event has the line of pgtable.c that brought it about; a shim between the two does not count."""
    with harness("6.12") as h:
        h.stage2_init(40)
        assert h.places() == []
        h.set("places", True)
        _, raws = h.stage2_map(0x1000, 0x1000, 0x1000, h.prot("rw"))
        places = h.places()[1:-1]
        text = tree("6.12").text[PGTABLE].splitlines()
        assert len(places) == len(raws)
        for raw, place in zip(raws, places, strict=True):
            assert place is not None
            assert place.file == "pgtable.c"
            word = {ev.ALLOC: "zalloc_page", ev.GET: "get_page", ev.CACHE: "dcache_clean_inval_poc", ev.BARRIER: "dsb("}
            if raw[0] in word:
                assert word[raw[0]] in text[place.line - 1]
