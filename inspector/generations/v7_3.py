"""Linux 7.3: as 7.2, from which only its name and its source tell it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.generations.v7_2 import GENERATION as V7_2

GENERATION: Final = replace(V7_2, label="7.3", source="7.3.4")
