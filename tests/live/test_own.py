"""EL2's own table of an nVHE host, as the tool reads it, beside the kernel's symbols and QEMU's own walk at EL2."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from inspector.capture.selection import choose_own, translate_in
from inspector.check import run_checks
from inspector.codec import Kind
from inspector.findings import Severity
from inspector.snapshot import OwnKind
from inspector.tables import Entry, entries, merged_ranges
from tests.live.conftest import take_from
from tests.live.gdb_session import PROMPT, Session
from tests.live.machine import Machine
from tests.live.poke import written
from tests.live.scene import Scene, clean_scene

pytestmark = pytest.mark.live

PAGE = 0x1000
XN, READ_ONLY = 1 << 54, 1 << 7  # DDI 0487 D8.3.1-2, stage 1 of the EL2 regime


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """One CPU, so that QEMU's monitor walks as it does."""
    with Machine.start(smp=1, append="kvm-arm.mode=nvhe") as machine, clean_scene(machine) as scene:
        yield scene


def symbols_of(machine: Machine) -> dict[str, int]:
    """Every symbol of the kernel, at its link address, by pyelftools from the vmlinux."""
    assert machine.vmlinux is not None
    with machine.vmlinux.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {one.name: one["st_value"] for one in table.iter_symbols() if one["st_info"]["type"] != "STT_FILE"}


def test_each_symbol_of_the_hypervisor_is_where_it_was_loaded(scene: Scene) -> None:
    """Its text is executable and not writable, its .bss writable and not executable, the rest readable at most.

    A symbol's PA is by its place in the image; its hyp VA by the offset that the identity-mapped and the linear mapping
    of the first page of text, which holds the idmap, have between them.
    """
    known, view = symbols_of(scene.machine), choose_own(scene.clean, OwnKind.HYP)
    image = scene.clean.host.image_pa[0] - known["_text"]
    first = known["__hyp_idmap_text_start"] + image
    (high,) = (e.ia for e in entries(view.tree) if e.descriptor.output_address == first and e.ia != first)
    sections = {
        "R-X": (known["__hyp_idmap_text_start"], known["__hyp_text_end"]),
        "R--": (known["__hyp_rodata_start"], known["__hyp_rodata_end"]),
        "RW-": (known["__hyp_bss_start"], known["__hyp_bss_end"]),
    }
    seen = dict.fromkeys(sections, 0)
    for name, link in known.items():
        where = next((p for p, (start, end) in sections.items() if start <= link < end), None)
        if where is None or not name.startswith("__kvm_nvhe_"):
            continue
        found = translate_in(view, link + image - first + high)
        assert found.pa == link + image, name
        assert found.steps[-1].descriptor.permissions == where, name
        seen[where] += 1
    assert seen["R-X"] > 200 and all(seen.values()), seen
    assert translate_in(view, first).pa == first


def test_qemu_walks_the_table_the_same_way(scene: Scene) -> None:
    """A breakpoint in the hypervisor, where QEMU's monitor translates as EL2: every range's ends, and the holes.

    The VM that runs into it is new, and what is shared for it (kvm_share_hyp) stays mapped: a later capture has it.
    """
    view, known = choose_own(scene.clean, OwnKind.HYP), symbols_of(scene.machine)
    image = scene.clean.host.image_pa[0] - known["_text"]
    target = known["__kvm_nvhe___kvm_vcpu_run"] + image
    (page,) = (
        e.ia for e in entries(view.tree) if e.descriptor.output_address == target & -PAGE and e.descriptor.executable
    )
    ranges = [(one.ia, one.ia + one.size, one.pa) for one in merged_ranges(view.tree)]
    with Session() as gdb:
        gdb(f"target remote {scene.machine.gdb_socket}")
        gdb(f"hbreak *{page + target % PAGE:#x}")
        gdb.type("continue")
        with scene.machine.asking("run one"):
            gdb.read_to(PROMPT)
            assert int(gdb("output/x $cpsr & 0xc"), 16) == 2 << 2  # EL2
            said = {}
            for start, end, _ in ranges:
                for va in (end - PAGE, start - PAGE):
                    if va not in said:
                        said[va] = gdb(f"monitor gva2gpa {va:#x}")
            gdb("delete")
            gdb("detach")
    later = choose_own(take_from(scene.machine, scene.symbols), OwnKind.HYP)
    mapped = 0
    for va, text in said.items():
        found = re.match(r"gpa: (0x[0-9a-f]+|0)\s", text)
        pa = int(found[1], 16) if found else None
        before, after = (translate_in(each, va).pa for each in (view, later))
        assert pa == after or (pa is None and before is None), (hex(va), text)
        assert before in (None, after)
        mapped += pa is not None
    assert mapped > 10 and len(said) - mapped > 10


def leaf(scene: Scene, permissions: str) -> Entry:
    """The last page with these permissions."""
    view = choose_own(scene.clean, OwnKind.HYP)
    found = [
        e for e in entries(view.tree) if e.descriptor.kind is Kind.PAGE and e.descriptor.permissions == permissions
    ]
    return found[-1]


@pytest.mark.parametrize(
    ("permissions", "change", "check"),
    [("RW-", XN, "H2"), ("R-X", XN, "H5"), ("R-X", READ_ONLY, "H2")],
)
def test_planted(scene: Scene, permissions: str, change: int, check: str) -> None:
    entry = leaf(scene, permissions)
    with written(scene.machine, {entry.pa: (entry.descriptor.raw ^ change).to_bytes(8, "little")}):
        found = run_checks(take_from(scene.machine, scene.symbols))
    assert [(f.check, f.severity, f.where.table_pa, f.where.index, f.where.ipa) for f in found] == [
        (check, Severity.ERROR, entry.table_pa, entry.index, entry.ia)
    ]
