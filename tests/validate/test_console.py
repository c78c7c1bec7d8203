"""The kernel's own reports among all that a console says."""

from __future__ import annotations

import pytest

from inspector.validate.console import reports

# As kernels print them (lib/bug.c, mm/kasan/report.c, kernel/locking/lockdep.c, kernel/rcu/tree_stall.h, traps.c).
REPORTS = [
    "[   12.345678] WARNING: CPU: 1 PID: 77 at arch/arm64/kvm/hyp/pgtable.c:461 stage2_map_walker+0x1/0x2",
    "[   12.345678][   T77] BUG: KASAN: slab-use-after-free in kvm_pgtable_stage2_unmap+0x10/0x20",
    "[    1.000000] WARNING: possible circular locking dependency detected",
    "[    3.000000] rcu: INFO: rcu_preempt self-detected stall on CPU",
    "[    3.000000] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010",
    "[    3.000000] Internal error: Oops: 0000000096000004 [#1] SMP",
    "[    3.000000] list_del corruption. next->prev should be ffff, but was 0",
    "[    3.000000] Kernel panic - not syncing: Attempted to kill init!",
]


@pytest.mark.parametrize("line", REPORTS)
def test_each_is_one(line: str) -> None:
    (found,) = reports(f"[    0.1] Booting\r\n{line}\r\n[   12.4] Modules linked in:\r\n[   12.5] pc : x\r\n")
    assert found[0] == line.partition("] ")[2]
    assert found[-1] == "pc : x"


def test_a_quiet_console_has_none() -> None:
    console = (
        "[    0.000000] Linux version 6.12.1 (gcc) #1 SMP Debian\n"
        "[    0.123456] kvm [1]: VHE mode initialized successfully\n"
        'S2X {"event":"note","text":"BUG: in a line of the exerciser"}\n'
        "[    0.2] clocksource: Switched to clocksource arch_sys_counter\n"
    )
    assert list(reports(console)) == []
