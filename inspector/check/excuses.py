"""Why what is wrong at this instant may be right at the next one: the excuses that turn an error into a note.

A capture is one instant of a running machine.  What KVM does in several steps under a lock (a walk, an invalidation by
the MMU notifier, the switching on of dirty logging) can be met half-way; every rule asks here whether that is so.
"""

from __future__ import annotations

from inspector.snapshot import CpuState, Host, Running, Vm

#: Functions in which an idle CPU is found; they hold no lock.
_IDLE = ("cpu_do_idle", "default_idle_call", "arch_cpu_idle", "do_idle", "psci_", "cpu_suspend", "__cpu_suspend")


def possible_walkers(host: Host) -> tuple[CpuState, ...]:
    """The CPUs that may be inside a table walk: stopped in kernel or hypervisor code that is not idle.

    Not only those in ``stage2_*`` or ``kvm_pgtable_*``: a walker is as often stopped in what it calls (a TLB
    helper, a cache clean, the page allocator) or in an interrupt taken on top of it, and only the innermost
    function is known here.  mmu_lock disables preemption, so a CPU in a guest, in user space or idle holds none.
    """
    return tuple(cpu for cpu in host.cpus if _may_walk(cpu))


def _may_walk(cpu: CpuState) -> bool:
    if cpu.running in (Running.GUEST, Running.USER):
        return False
    return cpu.running is not Running.HOST or not (cpu.symbol or "").startswith(_IDLE)


def walk_in_progress(host: Host, vm: Vm | None = None) -> str | None:
    """Who may be inside a table walk (that changes a table of ``vm``), in words, or ``None`` when nobody can be.

    Every walk that changes a table holds ``kvm->mmu_lock``, for reading (faults, 6.6 and later) or for writing:
    where that lock is free, nobody does, whatever the CPUs are at.
    """
    walkers = possible_walkers(host)
    who = " and ".join(f"CPU {c.index} was stopped in {c.symbol or 'the kernel'}" for c in walkers) or None
    if vm is None or vm.mmu_lock_held is None:
        return who
    return (who or "its mmu_lock was held") if vm.mmu_lock_held else None


def locked(host: Host, vm: Vm) -> str | None:
    """Why an entry may be LOCKED."""
    walkers = walk_in_progress(host, vm)
    return None if walkers is None else f"a walk may have been in progress ({walkers}): it replaces the mark"


def missing_references(host: Host, vm: Vm, count: int) -> str | None:
    """Why ``count`` references may be missing on a table page: each walker can be one behind."""
    walkers = walk_in_progress(host, vm)
    if walkers is None or count > len(possible_walkers(host)):
        return None
    return f"a walk may have been in progress ({walkers}): it sets an entry and its reference one after the other"


def invalidation(vm: Vm) -> str | None:
    """Why a leaf may outlive what backs it, or the VMM's right to write to it."""
    if vm.invalidating:
        return "an MMU-notifier invalidation was in progress: the leaf is removed before it ends"
    return None


def unlogged(host: Host, vm: Vm, count: int) -> str | None:
    """Why ``count`` writable leaves may be missing in a dirty log just now.

    Logging is switched on, and a log is read and cleared, under ``slots_lock``: the bits and the write protection
    change one after the other, with mmu_lock dropped in between.  A fault maps first and marks then, outside of
    mmu_lock from 6.12: one page for each vCPU that is in the kernel, on a CPU or preempted there.
    """
    if vm.slots_locked is not False:
        held = "was held" if vm.slots_locked else "is not known to be free"
        return f"kvm->slots_lock {held}: logging may be in the course of being switched on, or the log of being cleared"
    if count <= len(possible_walkers(host)) + sum(vcpu.preempted for vcpu in vm.vcpus):
        who = walk_in_progress(host) or "a vCPU was preempted"
        return f"a vCPU may be between mapping the page and marking it ({who})"
    return None
