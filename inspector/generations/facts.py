"""Where each field of a generation comes from: the kernel's commit, its release, and the page that says it.

``commit`` is given where the kernel's own history or a changelog names it; ``None``: commit not known, and then the
release is the oldest one that was seen to have the later form (``docs/kernel.md`` 0 lists what was read).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Fact:
    """``release``: the first mainline release, or where ``commit`` is ``None`` the first one read that has it.

    ``section`` is that of ``docs/kernel.md``.  ``commit`` are the first 12 digits, ``subject`` its first line.
    """

    section: str
    release: str
    commit: str | None = None
    subject: str | None = None


FACTS: Final[Mapping[str, Fact]] = {
    "reload_after_pre": Fact("3.2", "6.6"),
    "shared_walks": Fact("3.3", "6.6"),
    "eagain": Fact("3.4", "6.6"),
    "first_level": Fact("1.1", "6.12"),
    "invalid": Fact("1.6", "5.15"),
    "attr_hi_lsb": Fact("1.2", "6.6"),
    "two_bit_xn": Fact("1.3", "6.19"),
    "pgt_flags": Fact("1.3", "5.15"),
    "software_bits": Fact("1.4", "5.15"),
    "lpa2": Fact("1.2", "6.12"),
    "prot_layout": Fact("1.4", "6.12"),
    "map_scheme": Fact("4.3", "5.15"),
    "software_bits_store": Fact("4.4", "6.12"),
    "span_flush_aligned": Fact("4.4", "6.12"),
    "cmo_checks_valid": Fact("4.4", "6.12"),
    "annotation": Fact("5", "5.15"),
    "unmap_table_tlbi": Fact("6", "6.1"),
    "unmap_deferred_range": Fact("6", "6.6"),
    "unmap_defers_tables_too": Fact("6", "6.6"),
    "attr_invalid_eagain": Fact("7.1", "6.6"),
    "attr_icache": Fact("7.1", "5.15"),
    "attr_walk_flags": Fact("7.3", "6.6"),
    "wrprotect_ignores_eagain": Fact("7.2", "6.19"),
    "relax_local_tlbi": Fact("7.3", "6.6"),
    "relax_flush_on_eagain": Fact("7.3", "6.12"),
    "relax_eagain_level": Fact("7.3", "6.18"),
    "mkyoung_barrier_always": Fact("7.4", "6.6"),
    "mkyoung_returns_pte": Fact("7.4", "6.18"),
    "test_clear_young": Fact("7.5", "6.6"),
    "split": Fact("8", "6.6"),
    "split_barrier_each": Fact("8", "6.6"),
    "unlinked_double_put": Fact("8", "6.6"),
    "destroy_in_ranges": Fact("9", "6.19"),
    "hyp_unmap": Fact("10.1", "6.1"),
    "hyp_get_before_store": Fact("1.5", "6.6"),
    "hyp_conflict_goes_on": Fact("1.5", "6.1"),
    "hyp_running_pa": Fact("1.5", "6.6"),
    "hyp_hvhe": Fact("1.5", "6.6"),
    "hyp_bti": Fact("1.5", "6.6"),
    "hyp_two_bit_xn": Fact("1.5", "6.19"),
    "hyp_device_index": Fact("1.5", "5.15"),
    "ha_always": Fact("2.1", "6.1"),
    "cacheable_pfnmap": Fact("11.4", "6.17"),
    "present_invalid_bit11": Fact("14.3a", "6.12"),
}
"""By field of `inspector.generations.record.Generation`."""
