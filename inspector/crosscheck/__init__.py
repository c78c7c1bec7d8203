"""A kernel's own page-table code, compiled for this host and held against the model.  It knows no machine, no gdb.

`source` reads the few files of a kernel (`tree`) from whatever a user names: a folder, an archive, a `package`, a
revision of `git`; `patch` and `apply` put patches on them, `changed` says which lines those changed.  `build` compiles
them with the shims in ``c/``; `harness` drives the library; `generate` makes operations, `differ` runs them on both
sides, `shrink` makes what differs small; `campaign` is the sequential comparison; `scale` spreads its work over
processes, and `cluster` over machines.  Each thing that is tried is one `verdict.Part`; `run` puts them together.
"""
