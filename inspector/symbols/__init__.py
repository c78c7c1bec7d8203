"""Addresses and types of a kernel, from whatever there is: ELF symtab and DWARF, BTF, kallsyms and ksymtab.

Knows file formats.  Knows nothing of gdb, of a running machine, or of KVM.
"""
