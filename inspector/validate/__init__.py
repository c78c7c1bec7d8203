"""A kernel in, a verdict out: booted in several ways, driven, followed, checked, and compared with another kernel.

Knows no page tables: what is right is for `inspector.trace` and `inspector check` to say; here it is compared.
"""
