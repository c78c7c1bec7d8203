"""Kernel generations: what differs between them, and which one a kernel at hand is of.

One record a generation, one small file each (``v6_12.py``); whatever else depends on the generation is derived from it:
how entries are read, what is counted, the model's switches, which kernel function is named, what ``--generation`` and
``decode --format`` accept.  A new generation is one new file: its difference from a neighbour and what it is recognised
by.  This room knows the codec and the shapes of one instant; it knows nothing of gdb, of symbols or of the model.
"""

from inspector.generations.forms import Annotation, Eagain, MapScheme, PgtFlags, ProtLayout, TableTlbi, WalkFlags
from inspector.generations.functions import functions
from inspector.generations.recognise import KernelCode, code_of, recognise, series_of, software_bits_used
from inspector.generations.record import Generation
from inspector.generations.registry import GENERATIONS, generation
from inspector.generations.traits import TRAITS, Probe, Trait

__all__ = [
    "GENERATIONS",
    "TRAITS",
    "Annotation",
    "Eagain",
    "Generation",
    "KernelCode",
    "MapScheme",
    "PgtFlags",
    "Probe",
    "ProtLayout",
    "TableTlbi",
    "Trait",
    "WalkFlags",
    "code_of",
    "functions",
    "generation",
    "recognise",
    "series_of",
    "software_bits_used",
]
