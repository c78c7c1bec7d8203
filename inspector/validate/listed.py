"""The kernel's own listings of a machine's tables, read between two looks of ours at the same tables."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from inspector.capture.file import load
from inspector.capture.view import TableView, table_views
from inspector.findings import ExitCode, InspectorError
from inspector.machines import Machine
from inspector.snapshot import MmuKind
from inspector.validate.listing import Compared, Unreadable, compare, parse, walked

_FILE: Final = "/sys/kernel/debug/kvm/{}-{}/stage2_page_tables"
"""By the VMM's pid and its file of the VM (kvm_create_vm_debugfs(), virt/kvm/kvm_main.c)."""
_LINES: Final = 12
Add = Callable[..., None]


def listed(machine: Machine, required: bool, add: Add) -> None:
    """A part: every VM's listing against its tables, as far as they are the same before and after it was read.

    A kernel that prints none has no such part, unless it is ``required``.
    """
    try:
        before = _views(machine)
        found = {name: _ask(machine, view) for name, view in before.items() if view.vm.pid is not None}
        after = _views(machine)
    except InspectorError as error:
        add("listing", ExitCode.UNTESTABLE, f"its tables could not be read: {error}")
        return
    texts = {name: lines for name, lines in found.items() if lines is not None}
    if not texts:
        if required:
            add("listing", ExitCode.UNTESTABLE, "the kernel was built with its own listing of tables, and printed none")
        return
    tables = {}
    for name, lines in texts.items():
        if name not in after or _bytes(before[name]) != _bytes(after[name]):
            continue  # it was no instant
        try:
            tables[name] = walked(before[name].tree), parse(lines)
        except Unreadable as row:
            add("listing", ExitCode.UNTESTABLE, f"{name}'s listing has a row that no known kernel prints: {row}")
            return
    if not tables:
        add("listing", ExitCode.UNTESTABLE, "every table changed while its listing was read")
        return
    told(compare(tables), tables, len(texts) - len(tables), add)


def told(compared: Compared, tables: Mapping[str, object], moved: int, add: Add) -> None:
    """The part."""
    count = sum(map(len, compared.mismatches.values()))
    summary = f"the kernel lists {compared.ranges} ranges of {len(tables)} VMs, {count} otherwise than they are"
    if compared.inverted:
        summary += "; it prints X where a range is not executable, as 6.12 does"
    if moved:
        summary += f"; {moved} changed meanwhile, and were left out"
    lines = [
        line for name, wrong in compared.mismatches.items() for each in wrong for line in (f"{name}:", *each.lines())
    ]
    if len(lines) > 4 * _LINES:
        lines = [*lines[: 4 * _LINES], "..."]
    code = ExitCode.FINDINGS if count else ExitCode.CLEAN
    add("listing", code, summary, lines, ranges=compared.ranges, mismatches=count)


def _views(machine: Machine) -> dict[str, TableView]:
    """The VMs' own tables, by pid and file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "listing.s2cap"
        done = machine.inspect("capture", str(file))
        if done.returncode:
            raise InspectorError(done.stderr.strip()[-200:])
        capture = load(str(file))
    views = (view for view in table_views(capture) if view.mmu.kind is MmuKind.VM and view.vm.fd is not None)
    return {view.vm.name: view for view in views}


def _bytes(view: TableView) -> list[tuple[int, bytes]]:
    return [(table.pa, table.raw) for table in view.tree.tables]


def _ask(machine: Machine, view: TableView) -> list[str] | None:
    """Its rows; ``None`` where there is no such file."""
    done = machine.send("cat " + _FILE.format(view.vm.pid, view.vm.fd))
    return list(_rows(done.stdout)) if done.returncode == 0 else None


def _rows(events: str) -> Iterator[str]:
    for line in events.splitlines():
        event = json.loads(line)
        if event.get("event") == "file":
            yield event["line"]
