"""How long each channel takes to see a fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from inspector.crosscheck import campaign
from inspector.crosscheck.differ import Open
from inspector.crosscheck.generate import PLAIN, Focus
from inspector.crosscheck.interleave.part import interleave
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.sequential import sanitizers
from inspector.crosscheck.watch import UnderWatch
from inspector.findings import ExitCode
from tests.crosscheck.faults.catalogue import Channel

OPERATIONS = 20_000
"""What `inspector crosscheck` compares unless told otherwise."""
SEED = 1


@dataclass(frozen=True)
class Seen:
    """``seconds`` to the finding, builds included; ``says``: its first words.  ``None``: nothing was found."""

    seconds: float
    says: str


def _sequential(kernel: Kernel, open_sides: Open | None, focus: Focus = PLAIN) -> str | None:
    outcome = campaign.Outcome(kernel, SEED)
    campaign.fill(outcome, campaign.Plan(kernel, ("4k",), open_sides, focus), OPERATIONS)
    found = outcome.difference
    return None if found is None else f"{found.what}: {(found.kernel.strip().splitlines() or [''])[0].strip()}"


def _model(kernel: Kernel) -> str | None:
    return _sequential(kernel, None)


def _protocol(kernel: Kernel) -> str | None:
    return _sequential(kernel, UnderWatch(kernel))


def _sanitizers(kernel: Kernel) -> str | None:
    matter = sanitizers(kernel)
    return _sequential(kernel, matter.open_sides, matter.focus)


def _interleavings(kernel: Kernel) -> str | None:
    """Without the model on the schedule: what the engine checks by itself."""
    part = interleave(kernel, model=False, machines=1)
    return part.lines[0] if part.code is ExitCode.FINDINGS else None


_WAYS: dict[Channel, Callable[[Kernel], str | None]] = {
    Channel.MODEL: _model,
    Channel.PROTOCOL: _protocol,
    Channel.SANITIZERS: _sanitizers,
    Channel.INTERLEAVINGS: _interleavings,
}


def look(kernel: Kernel, channel: Channel) -> Seen | None:
    """What one channel says of a kernel."""
    began = time.monotonic()
    says = _WAYS[channel](kernel)
    return None if says is None else Seen(time.monotonic() - began, says)
