"""What the commands inside a person's gdb are told of a machine, once: JSON between two parts of one tool.

No document of ours for others: its shape is that of ``gdb_scripts/facts.py`` in the same tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from inspector.capture.table_facts import TableFacts
from inspector.capture.view import table_views
from inspector.generations import code_of
from inspector.generations.forms import WalkFlags
from inspector.report.document import Document
from inspector.report.format import Lines, Painter
from inspector.snapshot import Capture, Mode


def facts_json(
    capture: Capture,
    tables: Mapping[int, TableFacts],
    operations: Mapping[str, tuple[int, tuple[str, ...]]],
    symbols: str,
) -> dict[str, Any]:
    """``tables``: by the MMU's address; ``operations``: address and arguments by name; ``symbols``: one
    function a line, by link address."""
    host = capture.host
    walk_flags = code_of(host).behaviours.attr_walk_flags
    return {
        "release": host.release,
        "kvm": host.mode is not Mode.NONE,
        "slide": host.kaslr_slide,
        "page_size": host.page_size,
        "operations": {
            name: [address, [each for each in arguments if each != "flags" or _has_flags(name, walk_flags)]]
            for name, (address, arguments) in operations.items()
        },
        "vms": [
            {
                "name": view.vm.name,
                "pid": view.vm.pid,
                "title": view.title,
                "number": view.number,
                "mmu": view.mmu.address,
                "root": view.root_pa,
                "pgt": tables[view.mmu.address].pgt,
                "pgd": tables[view.mmu.address].pgd,
                "marks": tables[view.mmu.address].marks,
                "geometry": asdict(view.geometry),
                "format": asdict(view.format),
                "memslots": [
                    [slot.base_gfn, slot.npages, slot.userspace_addr] for slot in view.vm.memslots if slot.as_id == 0
                ],
            }
            for view in table_views(capture)
            if view.mmu.address in tables
        ],
        "symbols": symbols,
    }


def _has_flags(name: str, who: WalkFlags) -> bool:
    """Whether an operation is given walk flags: no one in the oldest releases, then map alone (kernel.md 7.3, 7.4)."""
    return who is WalkFlags.CALLER or (who is WalkFlags.FAULT_SHARED and name == "kvm_pgtable_stage2_map")


class GdbInit(Document, frozen=True, kw_only=True):
    """`inspector gdb-init`."""

    command: Literal["gdb-init"] = "gdb-init"
    script: str
    program: str


def init_document(script: str, program: str) -> GdbInit:
    """`inspector gdb-init`: what gdb sources, and the tool that it runs."""
    return GdbInit(script=script, program=program)


def init_lines(paint: Painter, script: str, program: str) -> Lines:
    """The same as lines for a gdbinit."""
    yield paint("# KVM/arm64 stage-2 tables: 'help stage2'", "dim")
    yield f"python import os; os.environ['STAGE2_INSPECTOR'] = {program!r}"
    yield f"source {script}"
