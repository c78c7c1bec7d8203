"""Faults injected into a running host kernel through gdb: the one room that changes what a target does.

Each is data (`inspector.inject.catalogue`); what it breaks must be found by a trace of the same machine.
"""
