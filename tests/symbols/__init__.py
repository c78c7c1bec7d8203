"""Tests of `inspector.symbols`: parsers against files written here, providers against each other and against
gdb.
"""
