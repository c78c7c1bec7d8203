"""Where the stage 2 of a guest hypervisor is, from the VTTBR_EL2 and VTCR_EL2 that it wrote, as KVM walks it.

Source: ``walk_nested_s2_pgd`` and ``setup_s2_walk``, arch/arm64/kvm/nested.c (6.12 to 7.3): input addresses of 25 to 48
bits, outputs of at most 48, no LPA2 (KVM hides it from such a guest), BADDR aligned to what the root takes.
"""

from __future__ import annotations

from dataclasses import replace

from inspector.codec.geometry import Geometry
from inspector.codec.registers import encode_register

_OUTPUT_BITS = 48
_INPUT_BITS = range(25, _OUTPUT_BITS + 1)
_LPA2 = encode_register("vtcr_el2", {"DS": 1, "SL2": 1})


def guest_stage2(vttbr: int, vtcr: int) -> tuple[int, Geometry] | None:
    """Root (an address of the hypervisor's) and shape; ``None`` where KVM would not walk either."""
    try:
        found = Geometry.from_vtcr(vtcr & ~_LPA2)
    except ValueError:
        return None
    if found.ia_bits not in _INPUT_BITS:
        return None
    found = replace(found, pa_bits=min(found.pa_bits, _OUTPUT_BITS))
    root = vttbr & ((1 << _OUTPUT_BITS) - 1) & ~(root_bytes(found) - 1)
    return root, found


def root_bytes(geometry: Geometry) -> int:
    """Bytes that the root takes: less than a granule where few of its entries can be reached."""
    return geometry.root_entries * 8 if geometry.root_pages == 1 else geometry.root_pages * geometry.granule
