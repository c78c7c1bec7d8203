"""The invalidation protocol: one automaton per entry over the events of one table, whoever performs them.

It judges events by themselves, by the rules of docs/invariants.md (B1-B4, B6-B9, B11, R1, R2, C3, S3, S6), and knows
nothing of the model, of a kernel's code or of where the events come from: helpers that the harness logs and single
instructions of a live kernel are taken alike.
"""
