"""Inputs from other people's machines, each with its right answer and the authority for it.

A case is an entry of one of the ``*.toml`` files here, one file a kind; ``test_cases`` runs them all.  Keys of a case:

``id``         the case's name.
``run``        the command line after ``inspector``.  ``{captures}`` is the folder of recorded captures, ``{file}`` what
               ``make`` returned.
``make``       a function of ``makers`` that makes the input file in a folder and returns its path.
``exit``       the exit code (default 0).
``says``       texts that stdout or stderr must contain; white space counts as one space.
``never``      texts that neither may contain.
``json``       for a run with ``--json``: values by dotted path, as in ``cpus.0.decoded.TCR_EL2.IPS``.
``authority``  why that is the right answer: a section of DDI 0487, a kernel function and release, a public report.
``seconds``, ``megabytes``  limits within which the command must end; it then runs as a process of its own.
"""
