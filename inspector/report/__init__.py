"""Captures and verdicts as text for people and as JSON for programs.

One module a subject: it holds the shape of the JSON, and two functions that make a report: ``document`` gives the
JSON, ``lines`` the text.  None prints.  In the text a title names the regime, then comes what is in it; a raw
descriptor always stands beside its decoding, with the table address and index it was read from.
"""

from inspector.report import (
    arrow,
    capture,
    changes,
    check,
    crosscheck,
    decode,
    detection,
    diff,
    dump,
    gdb,
    host,
    inject,
    manual,
    memslots,
    model,
    reverse,
    story,
    sysregs,
    trace,
    validate,
    vms,
    walk,
)

__all__ = [
    "arrow",
    "capture",
    "changes",
    "check",
    "crosscheck",
    "decode",
    "detection",
    "diff",
    "dump",
    "gdb",
    "host",
    "inject",
    "manual",
    "memslots",
    "model",
    "reverse",
    "story",
    "sysregs",
    "trace",
    "validate",
    "vms",
    "walk",
]
