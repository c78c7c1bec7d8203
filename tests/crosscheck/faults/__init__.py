"""Kernels with one fault of ours in their page-table code, and which channel of `inspector crosscheck` sees it."""
