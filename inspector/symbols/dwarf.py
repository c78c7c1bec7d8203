"""placeholder"""

from __future__ import annotations

from inspector.symbols.elf import Elf
from inspector.symbols.table import SymbolTable


def dwarf_to_btf(elf: Elf, table: SymbolTable) -> bytes:
    raise NotImplementedError
