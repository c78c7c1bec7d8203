"""N1 to N5, each fired by a fault put into a capture of a real guest hypervisor (`fixtures/captures/nested`).

What is right comes from the exerciser: what it wrote into L1's own table, and the PFNs of /proc/self/pagemap.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fixtures import console
from inspector.capture.file import load, save
from inspector.capture.nested import guest_view, users
from inspector.capture.selection import choose_one, translate_by_guest, translate_in
from inspector.capture.view import TableView, table_views
from inspector.check import run_checks
from inspector.check.composed import rights
from inspector.codec.nested import guest_stage2
from inspector.findings import BadInput, Finding, Severity
from inspector.snapshot import Capture, MmuKind, Vcpu
from inspector.tables import Entry, entries

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "captures" / "nested"
ERROR, NOTE = Severity.ERROR, Severity.NOTE
#: fixtures/exerciser/nested.c.
UNDER_STAGE2, WITHOUT = 0x1_0000_4010_0000, 0x2_0000_0000_0000
# Stage-2 leaf bits: DDI 0487 D8.3.1-2.
WRITE, XN_HI, XN, MEMATTR, DEVICE_FWB, LEVEL = 1 << 7, 2 << 53, 3 << 53, 0xF << 2, 1 << 2, 3 << 55
PAGE, BLOCK = 0x1000, 0x20_0000


@cache
def recorded() -> Capture:
    return load(FOLDER / "7.3.s2cap")


@cache
def told() -> list[dict[str, Any]]:
    lines = gzip.decompress((FOLDER / "7.3.truth.gz").read_bytes()).splitlines(keepends=True)
    return [e for e in (console.parse(line) for line in lines) if e is not None and e["event"] == "nested"]


def shadow(capture: Capture, vttbr: int = UNDER_STAGE2) -> TableView:
    (found,) = (view for view in table_views(capture) if view.mmu.nested_vttbr == vttbr)
    return found


def leaf(ipa: int, vttbr: int = UNDER_STAGE2) -> Entry:
    found = (e for e in entries(shadow(recorded(), vttbr).tree) if e.descriptor.kind.is_leaf)
    return next(e for e in found if e.ia <= ipa < e.ia + e.descriptor.size)


def with_word(capture: Capture, pa: int, value: int) -> Capture:
    start = pa & -PAGE
    page = bytearray(capture.pages[start])
    struct.pack_into("<Q", page, pa - start, value)
    return replace(capture, pages={**capture.pages, start: bytes(page)})


def planted(ipa: int, change: Callable[[int], int], vttbr: int = UNDER_STAGE2) -> Capture:
    """The capture with the leaf of the shadow for ``ipa`` changed."""
    found = leaf(ipa, vttbr)
    return with_word(recorded(), found.table_pa + 8 * found.index, change(found.descriptor.raw))


def theirs(ipa: int, change: Callable[[int], int]) -> Capture:
    """The capture with the entry for ``ipa`` of the hypervisor's own table changed."""
    view = shadow(recorded())
    found = translate_by_guest(view, ipa)
    assert found is not None
    last = found[1].steps[-1]
    page = dict(view.mmu.nested_tables)[last.entry_pa & -PAGE]
    return with_word(recorded(), page + (last.entry_pa & PAGE - 1), change(last.descriptor.raw))


def given_up(capture: Capture) -> Capture:
    """The same, the hypervisor's registers naming another table."""

    def other(vcpu: Vcpu) -> Vcpu:
        return replace(vcpu, el2={**vcpu.el2, "VTTBR_EL2": 0x7_0000_4567_0000})

    vms = (replace(vm, vcpus=tuple(other(vcpu) for vcpu in vm.vcpus)) for vm in capture.vms)
    return replace(capture, vms=tuple(vms))


def the_only(capture: Capture) -> Finding:
    found = run_checks(capture)
    assert len(found) == 1, found
    return found[0]


def moved(to: int) -> Callable[[int], int]:
    """A change of the output address of a page."""
    return lambda raw: raw & ~0x0000_FFFF_FFFF_F000 | to


def page_of(ipa: int) -> int:
    """The PA that the exerciser told of an address of L2."""
    return next(int(e["pfn"], 0) * PAGE for e in told() if int(e["l2"], 0) == ipa)


# --- what is there ---


def test_clean() -> None:
    assert run_checks(recorded()) == []
    assert {view.mmu.nested_stage2 for view in table_views(recorded()) if view.mmu.kind is MmuKind.SHADOW} == {
        True,
        False,
    }


def test_the_shadow_maps_what_the_exerciser_told() -> None:
    """Of each page that L2 touched PA, size, rights; and the hypervisor's table gives the address that it wrote."""
    assert len(told()) > 15
    for event in told():
        view, l2, pa = shadow(recorded(), int(event["vttbr"], 0)), int(event["l2"], 0), int(event["pfn"], 0) * PAGE
        found = translate_in(view, l2)
        assert found.pa == pa, event
        entry = found.steps[-1].descriptor
        huge = event["size"] == BLOCK and l2 < 0x40_0000  # L1's other block is on 4K pages of the host
        assert entry.size == (BLOCK if huge else PAGE)
        may = event["read"] + 2 * event["write"] + (12, 8, 0, 4)[event["xn"]]  # DDI 0487 D8.4.3: XN[1:0] with FEAT_XNX
        assert rights(entry) & ~may == 0, event
        own = translate_by_guest(view, l2)
        assert (own is not None) == event["stage2"]
        if own is not None:
            assert own[1].pa == int(event["ipa"], 0)
            assert entry.sw == own[1].steps[-1].level


def test_only_tables_of_the_guest_are_kept() -> None:
    """The three that the exerciser's L1 has, and no page of L2's."""
    kept = dict(shadow(recorded()).mmu.nested_tables)
    assert list(kept) == [0x4010_0000, 0x4010_1000, 0x4010_2000]
    assert not set(recorded().pages) & {int(e["pfn"], 0) * PAGE for e in told()}


def test_it_is_in_force_for_the_vcpu() -> None:
    view = shadow(recorded())
    assert [vcpu.id for vcpu in users(view.vm, view.mmu)] == [0]
    other = shadow(given_up(recorded()))
    assert not list(users(other.vm, other.mmu))


# --- N1: foreign memory, whatever the hypervisor did ---


@pytest.mark.parametrize("vttbr", [UNDER_STAGE2, WITHOUT])
@pytest.mark.parametrize("changed", [lambda c: c, given_up], ids=["in-force", "given-up"])
def test_foreign_page(vttbr: int, changed: Callable[[Capture], Capture]) -> None:
    ipa = 0x1_0000 if vttbr == UNDER_STAGE2 else 0x4005_0000
    found = the_only(changed(planted(ipa, moved(0x6000_0000), vttbr)))
    assert (found.check, found.severity, found.where.ipa) == ("N1", ERROR, ipa)
    assert "0x60000000" in found.actual


def test_foreign_block() -> None:
    """The next 2M behind the block's own."""
    found = the_only(planted(0x20_0000, lambda raw: raw + BLOCK))
    assert (found.check, found.severity, found.where.size) == ("N1", ERROR, BLOCK)


def test_foreign_while_the_notifier_is_at_work() -> None:
    capture = planted(0x1_0000, moved(0x6000_0000))
    capture = replace(capture, vms=tuple(replace(vm, invalidating=True) for vm in capture.vms))
    assert the_only(capture).severity is NOTE


# --- N2: another page of the VM's ---


def test_wrong_page_of_the_vms() -> None:
    right, wrong = page_of(0x1_0000), page_of(0x1_1000)
    found = the_only(planted(0x1_0000, moved(wrong)))
    assert (found.check, found.severity, found.where.ipa) == ("N2", ERROR, 0x1_0000)
    assert f"{right:#x}" in found.expected and f"{wrong:#x}" in found.actual
    assert "break-before-make" in found.why


def test_wrong_page_with_stage2_off() -> None:
    found = the_only(planted(0x4005_0000, moved(page_of(0x4005_1000)), WITHOUT))
    assert (found.check, found.severity, found.where.ipa) == ("N2", ERROR, 0x4005_0000)
    assert "break-before-make" not in found.why, "no table of the hypervisor's is involved"


def test_wrong_page_in_a_table_that_may_be_given_up() -> None:
    found = the_only(given_up(planted(0x1_0000, moved(page_of(0x1_1000)))))
    assert (found.check, found.severity) == ("N2", NOTE)
    assert "1 of 18 leaves" in found.actual


def test_the_hypervisor_broke_its_entry() -> None:
    """Before its TLBI: legal."""
    found = the_only(theirs(0x1_0000, lambda raw: 0))
    assert (found.check, found.severity, found.where.ipa) == ("N2", NOTE, 0x1_0000)


def test_a_table_of_a_guest_that_ended_is_no_error() -> None:
    """Its pages are somebody else's: zeros, or anything; even by chance a table is a note at most."""
    view = shadow(recorded())
    for content in (bytes(PAGE), b"\xa5" * PAGE, struct.pack("<Q", 0x4242) * 512):
        pages = {pa: content for _, pa in view.mmu.nested_tables}
        capture = given_up(replace(recorded(), pages={**recorded().pages, **pages}))
        found = run_checks(capture)
        assert len(found) < 2 and all(f.severity is NOTE for f in found)


def test_a_table_that_the_hypervisor_has_twice() -> None:
    """It may; the addresses of the second place are not judged."""
    places = dict(shadow(recorded()).mmu.nested_tables)
    assert run_checks(with_word(recorded(), places[0x4010_1000] + 8, 0x4010_2000 | 3)) == []


# --- N3: rights ---


@pytest.mark.parametrize(
    ("ipa", "change"),
    [
        (0x2_1000, lambda raw: raw | WRITE),
        (0x1_0000, lambda raw: raw & ~XN),
        (0x2_2000, lambda raw: raw & ~XN),  # EL0 alone may execute
        (0x2_2000, lambda raw: raw | XN),  # EL1 alone, where EL0 alone may
        (0x2_3000, lambda raw: raw & ~XN),  # EL1 alone may execute
        (0x40_7000, lambda raw: raw & ~XN),  # a page of L1's block
    ],
)
def test_widened(ipa: int, change: Callable[[int], int]) -> None:
    """The hypervisor may have narrowed its entry and not invalidated yet: a note."""
    found = the_only(planted(ipa, change))
    assert (found.check, found.severity, found.where.ipa) == ("N3", NOTE, ipa)


def test_narrower_is_right() -> None:
    """KVM maps what a fault asked for, and relaxes later."""
    assert run_checks(planted(0x1_0000, lambda raw: raw & ~WRITE)) == []
    assert run_checks(planted(0x2_3000, lambda raw: raw & ~XN | XN_HI)) == []


@pytest.mark.parametrize("changed", [lambda c: c, given_up], ids=["in-force", "given-up"])
def test_widened_beyond_the_slot(changed: Callable[[Capture], Capture]) -> None:
    """The slot is read-only: no doing of the hypervisor's explains it."""
    found = the_only(changed(planted(0x4_0000, lambda raw: raw | WRITE)))
    assert (found.check, found.severity, found.where.ipa) == ("N3", ERROR, 0x4_0000)


def test_widened_beyond_the_vmms_page() -> None:
    capture, pa = recorded(), page_of(0x1_0000)
    vms = tuple(
        replace(
            vm,
            memslots=tuple(
                replace(s, backing=tuple(_cut(run, pa) for run in s.backing for run in _around(run, pa)))
                for s in vm.memslots
            ),
        )
        for vm in capture.vms
    )
    found = the_only(replace(capture, vms=vms))
    assert (found.check, found.severity, found.where.ipa) == ("N3", ERROR, 0x1_0000)


def _around(run: Any, pa: int) -> Iterator[Any]:
    """``run`` in up to three parts, the page at ``pa`` one of them."""
    if run.pa is None or not run.pa <= pa < run.pa + run.size:
        yield run
        return
    before, after = pa - run.pa, run.size - (pa - run.pa) - PAGE
    parts = ((0, before), (before, PAGE), (before + PAGE, after))
    yield from (replace(run, hva=run.hva + at, pa=run.pa + at, size=size) for at, size in parts if size)


def _cut(run: Any, pa: int) -> Any:
    return replace(run, writable=False) if run.pa == pa else run


# --- N4: size and level ---


@pytest.mark.parametrize(("ipa", "level"), [(0x1_0000, 2), (0x20_0000, 3), (0x40_7000, 3)])
def test_wrong_level(ipa: int, level: int) -> None:
    found = the_only(planted(ipa, lambda raw: raw & ~LEVEL | level << 55))
    assert (found.check, found.severity) == ("N4", ERROR)


def test_larger_than_the_hypervisors_entry() -> None:
    """A page where L1 had a block: of the shadow's 2M only the first 4K are given."""
    view, table = shadow(recorded()), 0x7654_3000
    mmu = replace(view.mmu, nested_tables=(*view.mmu.nested_tables, (0x4010_3000, table)))
    vm = replace(view.vm, mmus=tuple(mmu if one is view.mmu else one for one in view.vm.mmus))
    pages = {**recorded().pages, table: struct.pack("<Q", 0x8000_07FF).ljust(PAGE, b"\0")}
    capture = replace(recorded(), vms=(vm,), pages=pages)
    entry = dict(mmu.nested_tables)[0x4010_1000] + 8
    found = run_checks(with_word(capture, entry, 0x4010_3000 | 3))
    assert [(f.check, f.severity, f.where.ipa, f.where.size) for f in found] == [
        ("N4", ERROR, 0x20_0000, BLOCK),
        ("N2", NOTE, 0x20_0000, BLOCK),
    ]


# --- N5: memory type ---


def test_ram_as_a_device() -> None:
    found = the_only(planted(0x1_0000, lambda raw: raw & ~MEMATTR | DEVICE_FWB))
    assert (found.check, found.severity) == ("N5", ERROR)


# --- what is not judged ---


def test_contexts_that_stand_for_nothing() -> None:
    """Of a context that waits to be emptied, or is none, leaves are an earlier one's."""
    spoilt = planted(0x1_0000, moved(0x6000_0000))
    for change in ({"pending_unmap": True}, {"nested_valid": False}, {"nested_stage2": None}):
        vms = tuple(
            replace(vm, mmus=tuple(replace(m, **change) if m.kind is MmuKind.SHADOW else m for m in vm.mmus))
            for vm in spoilt.vms
        )
        assert run_checks(replace(spoilt, vms=vms)) == []


def test_a_big_endian_hypervisor_is_not_read() -> None:
    spoilt = planted(0x1_0000, moved(page_of(0x1_1000)))
    (vm,) = spoilt.vms
    vcpus = tuple(replace(vcpu, el2={**vcpu.el2, "SCTLR_EL2": 1 << 25}) for vcpu in vm.vcpus)
    assert run_checks(replace(spoilt, vms=(replace(vm, vcpus=vcpus),))) == []


def test_slots_whose_backing_is_unknown() -> None:
    """With guest_memfd nobody knows which pages are the VM's."""
    spoilt = planted(0x1_0000, moved(0x6000_0000))
    (vm,) = spoilt.vms
    slots = tuple(replace(slot, flags=slot.flags | 4) for slot in vm.memslots)
    assert not [f for f in run_checks(replace(spoilt, vms=(replace(vm, memslots=slots),))) if f.check == "N1"]


# --- shapes, files, choosing ---


@pytest.mark.parametrize(
    ("vttbr", "vtcr", "root", "root_pages"),
    [
        (UNDER_STAGE2 | 1, 0x8005_3559, 0x4010_0000, 1),  # the exerciser's: 39 bits from level 1; CnP
        (0x4010_3000, 0x8005_3558, 0x4010_2000, 2),  # 40 bits: two tables, aligned to both
        (0x4010_0F80, 0x8005_355C, 0x4010_0E00, 1),  # 36 bits from level 1: 64 entries
    ],
)
def test_where_the_hypervisors_table_is(vttbr: int, vtcr: int, root: int, root_pages: int) -> None:
    found = guest_stage2(vttbr, vtcr)
    assert found is not None
    assert (found[0], found[1].root_pages) == (root, root_pages)


def test_a_shape_that_kvm_does_not_walk() -> None:
    assert guest_stage2(UNDER_STAGE2, 0x8005_3500) is None  # 64 bits
    assert guest_stage2(UNDER_STAGE2, 0x8005_355C | 3 << 14) is None  # TG0=3


def test_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.s2cap"
    save(recorded(), path)
    assert load(path) == recorded()


def test_choosing_a_shadow() -> None:
    view = shadow(recorded())
    assert choose_one(recorded(), "vm0", view.mmu.vmid).mmu == view.mmu
    with pytest.raises(BadInput, match="no shadow table has VMID 77: there are 2 of vm0, 3 of vm0"):
        choose_one(recorded(), None, 77)
    assert guest_view(choose_one(recorded(), None)) is None
