"""The faults that are built into kernels to see that they are found: what fixtures/edits/faults says of each.

The edits themselves are read by who builds (`fixtures.build.edits`); here is what they break, and who must find it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspector.findings import BadInput
from inspector.machines import RUN_QEMU
from inspector.protocol.rules import RULES

FOLDER: Final = RUN_QEMU.parent / "fixtures/edits/faults"
MODEL: Final = "model"
"""The owner of what no rule of the protocol forbids: the model does otherwise."""

MACHINES: Final[Mapping[str, tuple[str, ...]]] = {
    "max": ("--cpu", "max,lpa2=off"),
    "cortex-a76": ("--cpu", "cortex-a76", "--gic-version", "2"),
}
"""Options of run_qemu.sh.  A76 has neither FWB, nor ranges of TLBI, nor CTR_EL0.DIC: there caches are maintained, XN is
set, and whole VMIDs are flushed.  A GICv2 gives guests a device that is mapped."""


@dataclass(frozen=True)
class Seeded:
    """A fault: ``owner`` is a rule of `RULES`, or `MODEL`; ``machine`` a key of `MACHINES`, on which it shows.

    ``releases`` are those that it has a form for; ``digest`` is of its edits.
    """

    name: str
    what: str
    owner: str
    machine: str
    releases: tuple[str, ...]
    digest: str
    path: Path


def seeded(folder: Path = FOLDER) -> dict[str, Seeded]:
    """By name.  Raises `BadInput` for a file that is none."""
    found = {path.stem: _read(path) for path in sorted(folder.glob("*.toml"))}
    if not found:
        raise BadInput(f"there are no faults in {folder}: run this from a checkout of the project")
    return found


def _read(path: Path) -> Seeded:
    try:
        facts = tomllib.loads(path.read_text())
        releases = tuple(str(each) for form in facts["form"] for each in form["of"])
        edits = json.dumps([form["edit"] for form in facts["form"]]).encode()
        digest = hashlib.sha256(edits).hexdigest()
        fault = Seeded(path.stem, facts["what"], facts["owner"], facts.get("machine", "max"), releases, digest, path)
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is no file of a fault: it needs what, owner and form") from None
    if fault.machine not in MACHINES or (fault.owner != MODEL and fault.owner not in RULES):
        raise BadInput(f"{path}: no machine {fault.machine}, or no owner {fault.owner}")
    return fault
