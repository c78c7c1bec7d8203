"""What the model must know of the machine beside the kernel's generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What the model must know of the CPU and of the way pgtable.c was built and called.

    ``fwb``, ``tlb_range``, ``xnx``, ``hvhe``, ``bti``: the capabilities ``ARM64_HAS_STAGE2_FWB``,
    ``system_supports_tlb_range()``, ``ARM64_HAS_XNX``, ``ARM64_KVM_HVHE``, ``system_supports_bti_kernel()``.
    ``dcache_op``, ``icache_op``: the ``kvm_pgtable_mm_ops`` callbacks exist (a kernel's guests have both; the hyp
    host's have none).  The kernel's callbacks then do nothing on a CPU with FWB or CTR_EL0.DIC: a ``cache`` event is
    the call, not its effect.
    ``no_fwb``, ``idmap``, ``as_s1``: ``pgt->flags``.  ``force_pte``: what ``force_pte_cb`` answers, ``None`` = there
    is no callback.  ``hyp_build``: pgtable.c compiled for the hypervisor, which refuses SHARED walks.
    ``rcu``: ``free_unlinked_table`` waits for a grace period (the kernel's); the hypervisor's frees at once.
    """

    fwb: bool = False
    tlb_range: bool = False
    xnx: bool = False
    hvhe: bool = False
    bti: bool = False
    dcache_op: bool = True
    icache_op: bool = True
    no_fwb: bool = False
    idmap: bool = False
    as_s1: bool = False
    force_pte: bool | None = None
    hyp_build: bool = False
    rcu: bool = True
