"""A cut in the probe's records: what is told from there on is what is told of all of them, wherever it is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from inspector.events import ALLOC, CALL, ENTER, GET, STORE, RawEvent
from inspector.findings import Untestable
from inspector.trace.assemble import Assembler
from inspector.trace.cut import Cut, Scan, cut_at, end_of
from inspector.trace.raw import MARK, Record, RecordKind
from tests.trace.test_assemble import (
    CAS,
    DSB_ISH,
    INIT,
    LINEAR,
    OTHER,
    PGT,
    RELEASE,
    ROOT,
    STACK,
    TABLE,
    TLBI_IPA,
    enter,
    instruction,
    leave,
    plan,
    store,
)
from tests.trace.test_raw import packed

MARKED = Record(RecordKind.MARK, 1, MARK, ())
REGISTERS = Record(RecordKind.REGISTERS, 0, 0, (0, 0, 1 << 40, 0, STACK))
"""ID_AA64MMFR2_EL1.FWB is 1."""

MAP = (
    enter("kvm_vm_ioctl", sp=STACK + 64),
    enter("kvm_pgtable_stage2_map", PGT, 0x80000000, 0x1000, 0x50000000, 7, 0, 0x18),
    enter("stage2_memcache_zalloc_page", 0, sp=STACK - 32),
    leave("stage2_memcache_zalloc_page", TABLE + LINEAR, sp=STACK - 32),
    store(TABLE + 8, 0x500007FF),
    enter("kvm_host_get_page", TABLE + 8 + LINEAR, sp=STACK - 96),
    enter("kvm_pgtable_stage2_wrprotect", PGT, 0, 0x1000, cpu=1, sp=OTHER),
    store(ROOT + 16, 0x400, CAS),
    enter("kvm_host_get_page", ROOT + 16 + LINEAR, sp=STACK - 96),
    store(ROOT + 16, TABLE | 3, RELEASE),
    leave("kvm_pgtable_stage2_wrprotect", cpu=1, sp=OTHER),
    leave("kvm_pgtable_stage2_map"),
    enter("__kvm_tlb_flush_vmid_ipa", 0, sp=STACK),
    instruction(DSB_ISH),
    instruction(TLBI_IPA, 0x80000),
    leave("__kvm_tlb_flush_vmid_ipa", sp=STACK),
    leave("kvm_vm_ioctl", sp=STACK + 64),
)
RECORDS = (REGISTERS, *INIT, *MAP)


def cut_after(path: Path, count: int, scanned: int = 0) -> Cut:
    """The cut after so many records, of which some were scanned while the machine ran."""
    scan = Scan(plan())
    assembler = Assembler(plan())
    path.write_bytes(b"".join(map(packed, RECORDS[:scanned])) + b"\x02")
    scan.go(path, assembler.stack_mask)
    path.write_bytes(b"".join(map(packed, RECORDS[:count])) + packed(MARKED))
    return cut_at(path, end_of(path), scan, assembler)


@pytest.mark.parametrize("count", range(1 + len(INIT), len(RECORDS) + 1))
def test_what_comes_after_it_is_told_as_ever(tmp_path: Path, count: int) -> None:
    whole, first = Assembler(plan()), Assembler(plan())
    for record in RECORDS[:count]:
        list(whole.take(record))
        list(first.take(record))
    cut = cut_after(tmp_path / "trace.raw", count, scanned=count - 3)
    pages = {page: [entries.get(page + 8 * at, 0) for at in range(512)] for page, entries in first.pages.items()}
    cut.assembler.take_over(pages, dict(first.counts), {}, lpa2=False)
    expected = [each for record in RECORDS[count:] for each in whole.take(record)]
    assert [each for record in RECORDS[count:] for each in cut.assembler.take(record)] == expected
    assert not cut.assembler.outside
    assert cut.assembler.features["fwb"] == 1


def test_what_is_under_way_is_told(tmp_path: Path) -> None:
    """The ioctl; both operations, with the page that one has made and not yet linked."""
    count = next(at for at, record in enumerate(RECORDS) if record == store(ROOT + 16, 0x400, CAS)) + 1
    events: list[tuple[int, RawEvent]] = cut_after(tmp_path / "trace.raw", count).under_way
    assert [raw[:2] for _, raw in events] == [
        (ENTER, "kvm_vm_ioctl"),
        (CALL, "kvm_pgtable_stage2_map"),
        (ALLOC, TABLE),
        (STORE, TABLE + 8),
        (GET, TABLE),
        (CALL, "kvm_pgtable_stage2_wrprotect"),
    ]
    calls = [raw for _, raw in events if raw[0] == CALL]
    assert all(raw[2].endswith(",begun") for raw in calls)
    assert f"pgt={PGT:#x},addr=0x80000000,size=0x1000,phys=0x50000000" in calls[0][2]


def test_a_tlb_function_under_way_is_told(tmp_path: Path) -> None:
    events = cut_after(tmp_path / "trace.raw", len(RECORDS) - 3).under_way
    assert [raw for _, raw in events][-1] == (ENTER, "__kvm_tlb_flush_vmid_ipa", "begun")


def test_where_nothing_is_under_way_nothing_is_told(tmp_path: Path) -> None:
    assert cut_after(tmp_path / "trace.raw", len(RECORDS)).under_way == []


def test_records_that_may_not_be_all_are_no_place_for_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "trace.raw"
    path.write_bytes(b"".join(map(packed, RECORDS)))
    with pytest.raises(Untestable, match="--since start"):
        end_of(path)
    path.write_bytes(b"")
    assert end_of(path) == 0


def test_a_mark_is_what_the_probe_writes() -> None:
    """struct head of probe.c: kind, CPU, words, number, little-endian."""
    assert packed(MARKED) == struct.pack("<BBHI", 5, 1, 0, 0x4B52414D)
