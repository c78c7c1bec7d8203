"""A kernel's own page-table code, compiled for this host and held against the model.  It knows no machine, no gdb.

`tree` reads the few files of a kernel; `build` compiles them with the shims in ``c/``; `harness` drives the library;
`generate` makes operations, `differ` runs them on both sides, `shrink` makes what differs small; `campaign` is the
sequential comparison.  Each thing that is tried is one `verdict.Part`; `run` puts them together.
"""
