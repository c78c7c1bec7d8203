"""The translation of one input address, step by step, as the hardware would do it.  Standard library only."""

from __future__ import annotations

from inspector.codec import Format, Geometry, Kind, Regime, decode
from inspector.tables.shapes import Read, Step, Translation


def _in_range(ia: int, geometry: Geometry, fmt: Format) -> bool:
    """Whether the tree translates ``ia``: below ``2**ia_bits``, or for stage 1 also its sign-extended counterpart."""
    above = ia >> geometry.ia_bits
    if above == 0:
        return True
    return fmt.regime is not Regime.STAGE2 and above == (1 << (64 - geometry.ia_bits)) - 1


def translate(read: Read, root_pa: int, geometry: Geometry, fmt: Format, ia: int) -> Translation:
    """Translate ``ia`` through the tree at ``root_pa``, reading 8 bytes a level.

    An exception of ``read`` that has a ``reason`` ends the translation with that reason; any other goes through.
    The attributes that stage-1 table entries pass down (APTable, PXNTable, UXNTable) are decoded, not applied.
    """
    if not _in_range(ia, geometry, fmt):
        return Translation(ia, (), None, f"not mapped: outside the {geometry.ia_bits}-bit input address space")
    steps: list[Step] = []
    root_page = geometry.root_index(ia)
    table_pa = root_pa + root_page * geometry.granule
    for level in geometry.levels:
        index = geometry.index(level, ia)
        entry_pa = table_pa + 8 * index
        try:
            raw = int.from_bytes(read(entry_pa, 8), "little")
        except Exception as error:
            reason = getattr(error, "reason", None)
            if reason is None:
                raise
            failed = f"unreadable: level-{level} table at PA {table_pa:#x}: {reason}"
            return Translation(ia, tuple(steps), None, failed)
        descriptor = decode(raw, level, geometry, fmt)
        root = root_page if level == geometry.start_level else None
        steps.append(Step(level, root, table_pa, index, entry_pa, descriptor))
        address = descriptor.output_address
        if address is None or (descriptor.beyond_pa and descriptor.valid):
            return Translation(ia, tuple(steps), None)
        if descriptor.kind is not Kind.TABLE:
            return Translation(ia, tuple(steps), address | (ia & (geometry.block_size(level) - 1)))
        table_pa = address
    raise AssertionError("level 3 has no tables")
