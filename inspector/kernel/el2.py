"""Where EL2 has the kernel's own code in nVHE and hVHE."""

from __future__ import annotations

from collections.abc import Sequence

from inspector.codec import Format, Regime
from inspector.kernel.objects import HostKernel
from inspector.kernel.own import Registers, hyp_table
from inspector.kernel.physvirt import hyp_physvirt_offset
from inspector.snapshot import Mode
from inspector.tables import reverse, walk_tree

_TEXT = "__hyp_text_start"


def el2_distance(kernel: HostKernel, cpus: Sequence[Registers], mode: Mode) -> int | None:
    """Bytes from where the kernel has its image to where EL2 has what it runs of it; ``None`` where nothing says so.

    ``init_hyp_mode`` (arch/arm64/kvm/arm.c) maps that text once, at ``kern_hyp_va(lm_alias(...))``; its first page may
    be in the idmap too.  Images without the symbol of ``hyp_physvirt_offset`` have the mapping itself to go by.
    """
    text = kernel.symbol(_TEXT)
    if text is None:
        return None
    pa = kernel.space.pa(text)
    offset = hyp_physvirt_offset(kernel)
    if offset is not None:
        return pa - offset - text
    found = hyp_table(kernel, cpus, mode, None)
    if found is None:
        return None
    root, geometry, _ = found
    tree = walk_tree(kernel.space.memory.read_many, root, geometry, Format(regime=Regime.HYP_STAGE1))
    places = [ia for ia, _ in reverse(tree, pa) if ia != pa]
    return places[0] - text if len(places) == 1 else None
