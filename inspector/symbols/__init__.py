"""Addresses and types of a kernel, from whatever there is: ELF symtab and DWARF, BTF, kallsyms and ksymtab.

Knows file formats.  Knows nothing of gdb, of a running machine, or of KVM.
"""

from inspector.symbols.api import Member, MissingSymbol, StructType, Symbols, TypeKind, TypeRef
from inspector.symbols.kernel import KernelSymbols
from inspector.symbols.opening import open_symbols

__all__ = [
    "KernelSymbols",
    "Member",
    "MissingSymbol",
    "StructType",
    "Symbols",
    "TypeKind",
    "TypeRef",
    "open_symbols",
]
