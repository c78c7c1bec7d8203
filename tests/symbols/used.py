"""Every type, enumerator and symbol that the kernel room asks for: what the providers have to agree on.

A struct's members are dotted paths.  Not every release has every one; `ALWAYS` are in 5.10 to 7.3, and a
provider that lacks one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

MEMBERS: Mapping[str, tuple[str, ...]] = {
    "kvm": (
        "vm_list", "mm", "memslots", "nr_memslots_dirty_logging", "arch", "arch.mmu", "arch.mmu.pgd_phys",
        "arch.mmu.pgt", "arch.mmu.vmid", "arch.mmu.vtcr", "arch.vtcr", "arch.nested_mmus", "arch.nested_mmus_size",
        "arch.pkvm", "arch.pkvm.handle", "arch.flags", "users_count", "created_vcpus", "online_vcpus", "vcpus",
        "vcpu_array", "vcpu_array.xa_head", "mmu_lock", "userspace_pid", "stats_id",
        "slots_lock.owner", "dirty_ring_size",
        "mmu_notifier_count", "mmu_invalidate_in_progress", "mmu_notifier_seq", "mmu_invalidate_seq", "__memslots",
    ),
    "kvm_arch": ("mmu", "vtcr", "nested_mmus", "nested_mmus_size", "pkvm", "vgic"),
    "kvm_s2_mmu": (
        "vmid", "pgd_phys", "pgt", "vtcr", "last_vcpu_ran", "split_page_cache", "split_page_chunk_size", "arch",
        "kvm", "tlb_vttbr", "tlb_vtcr", "nested_stage2_enabled", "pending_unmap", "refcnt",
    ),
    "kvm_vmid": ("id", "vmid", "vmid_gen"),
    "kvm_pgtable": (
        "ia_bits", "start_level", "pgd", "pkvm_mappings", "mm_ops", "mmu", "flags", "force_pte_cb",
    ),
    "kvm_pgtable_visit_ctx": ("ptep", "old", "arg", "mm_ops", "start", "addr", "end", "level", "flags"),
    "kvm_pgtable_mm_ops": ("zalloc_page", "free_unlinked_table", "free_removed_table", "phys_to_virt", "page_count"),
    "kvm_memslots": ("generation", "gfn_tree", "id_hash", "node_idx", "used_slots", "memslots"),
    "kvm_memory_slot": (
        "base_gfn", "npages", "dirty_bitmap", "userspace_addr", "flags", "id", "as_id", "id_node", "hva_node",
        "gfn_node", "gmem", "gmem.file",
    ),
    "kvm_vcpu": (
        "kvm", "vcpu_id", "vcpu_idx", "cpu", "preempted", "mode", "arch", "arch.hw_mmu", "arch.ctxt",
        "arch.ctxt.regs.pc",
        "arch.hcr_el2",
    ),
    "kvm_device": ("ops", "kvm", "private"),
    "pkvm_hyp_vm": ("kvm", "host_kvm", "pgt", "pool"),
    "host_mmu": ("arch", "pgt", "mm_ops", "lock"),
    "host_kvm": ("arch", "pgt", "mm_ops", "lock"),
    "task_struct": (
        "tasks", "mm", "files", "pid", "tgid", "comm", "stack", "stack_vm_area", "thread_node", "group_leader",
        "thread_group", "signal", "flags", "thread_info", "thread_info.preempt_count", "cpu", "thread_info.cpu",
        "real_parent", "thread.cpu_context",
    ),
    "signal_struct": ("thread_head", "nr_threads"),
    "files_struct": ("fdt", "count"),
    "fdtable": ("max_fds", "fd"),
    "file": ("f_op", "private_data", "f_count", "f_mode"),
    "file_operations": ("release", "mmap", "unlocked_ioctl"),
    "mm_struct": ("pgd", "mm_users", "mm_count", "mmap", "mm_mt"),
    "vm_area_struct": ("vm_start", "vm_end", "vm_flags", "vm_file", "vm_pgoff"),
    "page": ("flags", "_refcount", "_mapcount", "page_type", "mapping", "lru", "compound_head", "private"),
    "vm_struct": ("next", "addr", "size", "flags", "pages", "nr_pages", "caller"),
    "list_head": ("next", "prev"),
    "hlist_head": ("first",),
    "hlist_node": ("next", "pprev"),
    "rb_node": ("__rb_parent_color", "rb_left", "rb_right"),
    "rb_root": ("rb_node",),
    "xarray": ("xa_head", "xa_flags"),
    "xa_node": ("shift", "offset", "count", "slots", "parent"),
    "callback_head": ("next", "func"),
}  # fmt: skip

ALWAYS: Mapping[str, tuple[str, ...]] = {
    "kvm": ("vm_list", "mm", "memslots", "arch.mmu.pgd_phys", "arch.mmu.pgt", "mmu_lock", "users_count"),
    "kvm_arch": ("mmu",),
    "kvm_s2_mmu": ("vmid", "pgd_phys", "pgt", "last_vcpu_ran"),
    "kvm_pgtable": ("ia_bits", "start_level", "pgd"),
    "kvm_memory_slot": ("base_gfn", "npages", "dirty_bitmap", "userspace_addr", "flags", "id", "as_id"),
    "kvm_memslots": ("generation",),
    "kvm_vcpu": ("kvm", "vcpu_id", "cpu", "arch.hw_mmu", "preempted"),
    "task_struct": ("tasks", "mm", "files", "pid", "tgid", "comm", "stack", "thread_node", "signal"),
    "signal_struct": ("thread_head",),
    "files_struct": ("fdt",),
    "fdtable": ("max_fds", "fd"),
    "file": ("f_op", "private_data"),
    "file_operations": ("release",),
    "mm_struct": ("pgd",),
    "page": ("flags", "_refcount", "page_type"),
    "vm_struct": ("next", "addr", "size"),
    "list_head": ("next", "prev"),
    "hlist_node": ("next", "pprev"),
    "xa_node": ("shift", "slots"),
}

# (enum, enumerator); an empty enum: whichever has it.
ENUMERATORS: tuple[tuple[str, str], ...] = (
    ("pageflags", "PG_locked"),
    ("pageflags", "PG_reserved"),
    ("pageflags", "PG_slab"),
    ("pageflags", "PG_head"),
    ("pageflags", "__NR_PAGEFLAGS"),
    ("pagetype", "PGTY_buddy"),
    ("pagetype", "PGTY_slab"),
    ("kvm_mode", "KVM_MODE_DEFAULT"),
    ("kvm_mode", "KVM_MODE_PROTECTED"),
    ("kvm_mode", "KVM_MODE_NONE"),
    ("kvm_invalid_pte_type", "KVM_INVALID_PTE_TYPE_LOCKED"),
    ("", "KVM_PGTABLE_WALK_LEAF"),
    ("", "KVM_PGTABLE_PROT_R"),
    ("kvm_pgtable_prot", "KVM_PGTABLE_PROT_NORMAL_NC"),
    ("__kvm_host_smccc_func", "__KVM_HOST_SMCCC_FUNC___kvm_tlb_flush_vmid_ipa"),
)

# In every Image, KALLSYMS_ALL or not: text, and exported data.
SYMBOLS: tuple[str, ...] = (
    "_text", "kvm_vm_release", "kvm_vcpu_release", "kvm_device_release", "kvm_get_running_vcpus", "init_task",
    "memstart_addr", "kimage_voffset", "__per_cpu_offset", "kvm_pgtable_stage2_map", "kvm_pgtable_stage2_unmap",
    "kvm_get_mode", "kvm_handle_guest_abort", "kvm_init_stage2_mmu",
)  # fmt: skip

# Only with KALLSYMS_ALL or a vmlinux.
DATA_SYMBOLS: tuple[str, ...] = ("vm_list", "swapper_pg_dir", "vmcoreinfo_data", "kvm_mode", "linux_banner")
