"""The model: the kernel's stage-2 page-table code, written anew in Python, emitting the events it performs.

It reproduces the observable behaviour of ``arch/arm64/kvm/hyp/pgtable.c``: every table entry, every reference
count, every return code, and the order of stores, TLB invalidations, cache maintenance, references and allocations.
It knows nothing of gdb, of captures or of symbols.  Kernel generations differ by named behaviours
(:mod:`inspector.generations`), never by a version test.

Reading order, from the ground up: ``pages`` (the store), ``attributes`` (leaf bits), ``state`` (one page table),
``walker``; the operations over them: ``in_place``, ``unmap``, ``destroy``, ``map`` (with ``map_data`` and a file for
each scheme), ``split``; ``stage2`` and ``hyp``, which put them under one name; ``operations``, ``session`` and
``script``.
"""

from inspector.generations import GENERATIONS, Generation, generation
from inspector.model.hyp import HypStage1
from inspector.model.machine import Machine
from inspector.model.pages import MemoryCache, PageStore
from inspector.model.prot import Prot
from inspector.model.script import ScriptError, StepResult, run_script
from inspector.model.stage2 import Stage2

__all__ = [
    "GENERATIONS",
    "Generation",
    "HypStage1",
    "Machine",
    "MemoryCache",
    "PageStore",
    "Prot",
    "ScriptError",
    "Stage2",
    "StepResult",
    "generation",
    "run_script",
]
