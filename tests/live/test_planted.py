"""Faults planted in a live machine's tables: each is found under its own id at its own place, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inspector.capture.view import TableView, table_views
from inspector.codec import Kind
from inspector.findings import Finding, Severity
from inspector.tables import Entry, entries
from tests.conftest import kernel_labels
from tests.live.machine import Machine
from tests.live.scene import PAGE_ADDRESS, Scene, clean_scene, refcount_pa, slot_of, vmm_entry_pa

pytestmark = pytest.mark.live

# Stage-2 leaf bits (DDI 0487 D8.3.1-2, D8.4.3, D8.6.5) and Linux's own (arch/arm64/include/asm/pgtable-prot.h).
MEMATTR, DEVICE_NGNRE, NORMAL_WB = 0xF << 2, 0x1 << 2, 0xF << 2
S2AP_R, S2AP_W, SH, AF, XN = 1 << 6, 1 << 7, 3 << 8, 1 << 10, 1 << 54
LINUX_RDONLY, LINUX_WRITE = 1 << 7, 1 << 51
LOG_DIRTY, READONLY = 1, 2
BLOCK = 0x20_0000

ERROR, NOTE = Severity.ERROR, Severity.NOTE


@pytest.fixture(
    scope="module", params=sorted({None, *kernel_labels()[-1:]}, key=str), ids=lambda label: label or "default"
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The distribution's kernel, and the newest there is (other forms of entries, FEAT_LPA2)."""
    with Machine.start(request.param) as machine, clean_scene(machine) as scene:
        yield scene


@pytest.fixture(scope="module")
def gicv2() -> Iterator[Scene]:
    """A host with a GICv2: KVM maps its virtual CPU interface, a device, into guests that have one."""
    with Machine.start(cpu="cortex-a76", smp=1, gic=2) as machine, clean_scene(machine) as scene:
        yield scene


def the_only(found: list[Finding], check: str, entry: Entry, severity: Severity = ERROR) -> Finding:
    """The one finding, of ``check``, at ``entry``."""
    places = [(f.check, f.severity, f.where.table_pa, f.where.index, f.where.ipa) for f in found]
    assert places == [(check, severity, entry.table_pa, entry.index, entry.ia)], found
    return found[0]


def pages(scene: Scene) -> tuple[TableView, list[Entry]]:
    """A VM's view and the pages of RAM in one of its tables, all in an unlogged slot that is not read-only."""
    view = scene.view()
    found = [e for e in entries(view.tree) if e.descriptor.kind is Kind.PAGE and e.descriptor.writable]
    return view, [e for e in found if not slot_of(view, e.ia).flags]


def in_slots(scene: Scene, flags: int) -> Iterator[tuple[TableView, Entry]]:
    """Every page of slots with these flags."""
    for view in table_views(scene.clean):
        for entry in entries(view.tree):
            if entry.descriptor.kind is Kind.PAGE and slot_of(view, entry.ia).flags == flags:
                yield view, entry


def device(scene: Scene) -> Entry:
    """GICV's leaf."""
    return next(
        e
        for view in table_views(scene.clean)
        for e in entries(view.tree)
        if e.descriptor.kind is Kind.PAGE and e.descriptor.memory_type == "device-nGnRE"
    )


# --- attributes ---


@pytest.mark.parametrize("bit", [11, 51, 52, 59, 63])
def test_stray_attribute_bit(scene: Scene, bit: int) -> None:
    _, (_, entry, *_) = pages(scene)
    the_only(scene.findings({entry.pa: entry.descriptor.raw | 1 << bit}), "S5", entry)


@pytest.mark.parametrize("bit", [55, 56, 57, 58])
def test_wrong_software_bit(scene: Scene, bit: int) -> None:
    _, (_, entry, *_) = pages(scene)
    the_only(scene.findings({entry.pa: entry.descriptor.raw | 1 << bit}), "M9", entry)


def test_xn_dropped(gicv2: Scene) -> None:
    """Of a device: on this CPU, without CTR_EL0.DIC, any page of RAM may have become executable by a fault."""
    entry = device(gicv2)
    the_only(gicv2.findings({entry.pa: entry.descriptor.raw & ~XN}), "M5", entry)


def test_ram_as_a_device(scene: Scene) -> None:
    _, (_, entry, *_) = pages(scene)
    raw = entry.descriptor.raw & ~MEMATTR | DEVICE_NGNRE | XN
    the_only(scene.findings({entry.pa: raw}), "M6", entry)


def test_a_device_as_ram(gicv2: Scene) -> None:
    """No slot is there, and only a device needs none."""
    entry = device(gicv2)
    the_only(gicv2.findings({entry.pa: entry.descriptor.raw & ~MEMATTR | NORMAL_WB}), "S7", entry)


def test_not_shareable(scene: Scene) -> None:
    view, (_, entry, *_) = pages(scene)
    if view.geometry.lpa2:  # the two bits are PA[51:50]: the leaf moves
        the_only(scene.findings({entry.pa: entry.descriptor.raw | SH}), "M1", entry)
    else:
        the_only(scene.findings({entry.pa: entry.descriptor.raw & ~SH}), "M7", entry)


def test_access_flag_of_a_device(gicv2: Scene) -> None:
    entry = device(gicv2)
    the_only(gicv2.findings({entry.pa: entry.descriptor.raw & ~AF}), "M8", entry)


@pytest.mark.parametrize("gone", [S2AP_W, AF], ids=["write-protected", "aged"])
def test_what_the_kernel_may_take_away_at_any_time(scene: Scene, gone: int) -> None:
    _, (_, entry, *_) = pages(scene)
    assert scene.findings({entry.pa: entry.descriptor.raw & ~gone}) == []


# --- rights ---


def test_not_readable(scene: Scene) -> None:
    _, (_, entry, *_) = pages(scene)
    the_only(scene.findings({entry.pa: entry.descriptor.raw & ~S2AP_R}), "M3", entry)


def test_write_permission_on_a_read_only_slot(scene: Scene) -> None:
    _, entry = next(in_slots(scene, READONLY))
    assert not entry.descriptor.writable
    the_only(scene.findings({entry.pa: entry.descriptor.raw | S2AP_W}), "M3", entry)


def test_write_permission_that_the_dirty_log_does_not_tell(scene: Scene) -> None:
    """Both sides: a page that the log has may be writable, one that it has not may not."""
    marked: list[Entry] = []
    unmarked: list[Entry] = []
    for view, entry in in_slots(scene, LOG_DIRTY):
        slot = slot_of(view, entry.ia)
        page = (entry.ia >> 12) - slot.base_gfn
        assert slot.dirty_pages is not None
        (marked if slot.dirty_pages[page // 8] >> page % 8 & 1 else unmarked).append(entry)
    assert any(e.descriptor.writable for e in marked)
    entry = next(e for e in unmarked if not e.descriptor.writable)
    the_only(scene.findings({entry.pa: entry.descriptor.raw | S2AP_W}), "M3", entry)


def test_write_permission_where_the_vmm_has_none(scene: Scene) -> None:
    """As after a fork or a merge by KSM that forgot the guest: the VMM's entry is write-protected."""
    view, (_, entry, *_) = pages(scene)
    slot = slot_of(view, entry.ia)
    place = vmm_entry_pa(scene, view, slot.userspace_addr + entry.ia - (slot.base_gfn << 12))
    raw = scene.u64(place)
    assert raw & PAGE_ADDRESS == entry.descriptor.output_address and raw & LINUX_WRITE
    the_only(scene.findings({place: raw & ~LINUX_WRITE | LINUX_RDONLY}), "M11", entry)


# --- where leaves point ---


def test_leaf_moved_to_another_page(scene: Scene) -> None:
    _, (_, entry, _, other, *_) = pages(scene)
    raw = entry.descriptor.raw & ~PAGE_ADDRESS | other.descriptor.raw & PAGE_ADDRESS
    the_only(scene.findings({entry.pa: raw}), "M1", entry)


def test_leaf_left_after_its_backing_went(scene: Scene) -> None:
    """As after a munmap() that forgot the guest: the VMM's own entry is gone."""
    view, (_, entry, *_) = pages(scene)
    slot = slot_of(view, entry.ia)
    place = vmm_entry_pa(scene, view, slot.userspace_addr + entry.ia - (slot.base_gfn << 12))
    assert scene.u64(place) & PAGE_ADDRESS == entry.descriptor.output_address
    finding = the_only(scene.findings({place: 0}), "M4", entry)
    assert "use-after-free" in finding.why


def test_leaf_where_no_page_ever_was(scene: Scene) -> None:
    """A leaf and its reference, in a slot, at an address that the VMM never touched."""
    place = absent(scene)
    count = scene.clean.page_info[place.table_pa].refcount
    found = scene.found_with(
        {
            place.pa: place.descriptor.raw.to_bytes(8, "little"),
            refcount_pa(scene, place.table_pa): (count + 1).to_bytes(4, "little"),
        }
    )
    the_only(found, "M4", place)


def absent(scene: Scene) -> Entry:
    """The place of a leaf that is not there: in a slot, under a table, and nothing behind it; with another's bits."""
    for view in table_views(scene.clean):
        found = list(entries(view.tree))
        leaf = next((e for e in found if e.descriptor.kind is Kind.PAGE), None)
        for table in view.tree.tables:
            if table.level != 3 or leaf is None:
                continue
            for slot in view.vm.memslots:
                base = slot.userspace_addr - (slot.base_gfn << 12)
                for run in slot.backing:
                    ipa = max(run.hva - base, table.ia)
                    if run.pa is None and ipa < min(run.hva - base + run.size, table.ia + BLOCK):
                        return Entry(table.pa, (ipa - table.ia) >> 12, 3, ipa, leaf.descriptor)
    raise AssertionError("every page of every slot that has a table was touched")


def test_table_page_mapped_into_a_guest(scene: Scene) -> None:
    view, (_, entry, *_) = pages(scene)
    for pa in (view.root_pa, view.tree.tables[-1].pa):
        raw = entry.descriptor.raw & ~PAGE_ADDRESS | pa
        the_only(scene.findings({entry.pa: raw}), "S8", entry)


def test_block_where_only_pages_fit(scene: Scene) -> None:
    """A slot whose IPA and HVA disagree modulo 2M: its table replaced by a block of the very memory behind it."""
    view, entry, pa = unaligned(scene)
    leaf = next(e for e in entries(view.tree) if e.descriptor.kind is Kind.BLOCK)
    raw = leaf.descriptor.raw & ~(-BLOCK & PAGE_ADDRESS) | pa
    the_only(scene.findings({entry.pa: raw}), "M2", entry)


def unaligned(scene: Scene) -> tuple[TableView, Entry, int]:
    """The level-2 table entry over such a slot, and a 2M page of the VMM behind the slot."""
    for view in table_views(scene.clean):
        for slot in view.vm.memslots:
            if not (slot.userspace_addr - (slot.base_gfn << 12)) % BLOCK or slot.flags or slot.npages < 1024:
                continue
            huge = next((r for r in slot.backing if r.entry_size == BLOCK and r.pa is not None), None)
            for entry in entries(view.tree):
                if huge and huge.pa and entry.ia == slot.base_gfn << 12 and entry.level == 2:
                    return view, entry, -(-huge.pa // BLOCK) * BLOCK
    raise AssertionError("no such slot")


# --- the tree and its counts ---


@pytest.mark.parametrize(("delta", "severity"), [(-1, ERROR), (1, NOTE)])
def test_reference_count(scene: Scene, delta: int, severity: Severity) -> None:
    """One too few is a use-after-free to come; one too many may be a foreign, passing reference: a note."""
    table = scene.view().tree.tables[-1]
    count = scene.clean.page_info[table.pa].refcount
    found = scene.findings({refcount_pa(scene, table.pa): count + delta}, size=4)
    assert [(f.check, f.severity, f.where.table_pa) for f in found] == [("R1", severity, table.pa)]


def test_empty_table(scene: Scene) -> None:
    """A note: a map that failed half-way leaves one, too.  The count is what an empty table's is."""
    view, (entry, *_) = pages(scene)
    found = scene.found_with(
        {entry.table_pa: bytes(4096), refcount_pa(scene, entry.table_pa): (1).to_bytes(4, "little")}
    )
    assert [(f.check, f.severity, f.where.vm, f.where.table_pa) for f in found] == [
        ("S9", NOTE, view.vm.name, entry.table_pa)
    ]
