"""Which kernel function writes what, by generation (kernel.md 4, 6, 15.2)."""

from __future__ import annotations

from collections.abc import Mapping

from inspector.generations.forms import MapScheme
from inspector.generations.record import Generation


def functions(generation: Generation) -> Mapping[str, str]:
    """The kernel function that writes such an entry or count, by what it is about."""
    first = generation.map_scheme is MapScheme.ANCHOR_IN_PLACE
    unlink = generation.map_scheme is MapScheme.UNLINK
    return {
        "attributes": "stage2_map_set_prot_attr" if first else "stage2_set_prot_attr",
        "xn": "stage2_set_xn_attr" if generation.two_bit_xn else "stage2_set_prot_attr",
        "leaf": "stage2_map_walker_try_leaf",
        "table": "stage2_map_walk_leaf",
        "table-entry": "kvm_init_table_pte" if unlink else "kvm_set_table_pte",
        "invalid": "kvm_set_invalid_pte" if first else "kvm_clear_pte",
        "locked": "stage2_try_break_pte",
        "put": "stage2_unmap_walker",
        "get": "stage2_make_pte" if unlink else "stage2_map_walk_leaf" if first else "stage2_map_walker_try_leaf",
        "age": "kvm_pgtable_stage2_test_clear_young" if generation.test_clear_young else "kvm_pgtable_stage2_mkold",
        "split": "user_mem_abort",
    }
