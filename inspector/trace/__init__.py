"""What happens between two instants: a machine's page-table operations, followed while they run.

A TCG plugin writes down what chosen instructions of KVM do (`plan` says which); `assemble` makes the event grammar of
it; a trace file keeps that; `replay` judges it, table by table, by the protocol's automaton.  Knows nothing of sessions
with gdb.
"""
