"""A walk that changes a table holds ``kvm->mmu_lock``: where the capture knows the lock, it alone excuses."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.findings import Severity
from tests.check.build import TRAITS_73, TRAITS_612, good_world
from tests.check.judge import at, only

ERROR, NOTE = Severity.ERROR, Severity.NOTE
LOCKED = [(TRAITS_612, 1 << 10), (TRAITS_73, 1 << 60)]


@pytest.mark.parametrize(("traits", "locked"), LOCKED)
@pytest.mark.parametrize(
    ("held", "symbol", "severity"),
    [
        (False, "gic_handle_irq", ERROR),  # in the kernel, but not in this VM's tables
        (True, "gic_handle_irq", NOTE),
        (True, "stage2_map_walker", NOTE),
        (None, "gic_handle_irq", NOTE),  # the lock is not known: the CPU could be
    ],
)
def test_a_locked_entry(traits: dict[str, bool], locked: int, held: bool | None, symbol: str, severity: Any) -> None:
    world = good_world(traits)
    guest = world.guests[0]
    table, index = guest.place(0x4000_9000, 3)
    world.freeze_counts()
    world.pages[table][index] = locked
    world.cpu("host", symbol)
    guest.vm_changes["mmu_lock_held"] = held
    at(only(world, "S6", severity), table_pa=table, index=index, raw=locked)


@pytest.mark.parametrize("held", [True, False])
def test_another_vms_lock_does_not_count(held: bool) -> None:
    """Each VM has a lock of its own."""
    world = good_world(TRAITS_612)
    first, second = world.guests[:2]
    table, index = first.place(0x4000_9000, 3)
    world.freeze_counts()
    world.pages[table][index] = 1 << 10
    world.cpu("host", "stage2_map_walker")
    first.vm_changes["mmu_lock_held"] = held
    second.vm_changes["mmu_lock_held"] = not held
    only(world, "S6", NOTE if held else ERROR)
