"""How far EL2's linear map is from physical memory, in nVHE, hVHE and pKVM."""

from __future__ import annotations

from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer


def hyp_physvirt_offset(kernel: HostKernel) -> int | None:
    """What EL2 in nVHE, hVHE and pKVM adds to an address of its own to have the PA, as 64 bits.

    ``hyp_physvirt_offset`` (arch/arm64/kvm/va_layout.c; EL2's own variable from 5.11 on).
    """
    for name in ("__kvm_nvhe_hyp_physvirt_offset", "hyp_physvirt_offset"):
        address = kernel.symbol(name)
        if address is not None:
            try:
                return kernel.space.u64(address)
            except BadPointer:
                return None
    return None
