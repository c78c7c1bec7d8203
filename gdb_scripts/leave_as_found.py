"""Runs inside gdb: puts the stub back when gdb ends without having been told to.

The program that drives gdb restores everything itself.  When it is killed outright it cannot: gdb then sees
its input end and leaves, and this is what it does last.  Needs gdb 12 (``gdb.events.gdb_exiting``); without
it gdb itself still detaches, and only the physical mode stays.
"""

from __future__ import annotations

import contextlib

import gdb


def stage2_leave_as_found(physical_mode: int, run: bool) -> None:
    """On exit: ``Qqemu.PhyMemMode`` as given, then detach (``run``) or disconnect (it stays stopped)."""
    registry = getattr(gdb.events, "gdb_exiting", None)
    if registry is None:
        return

    def put_back(event: object) -> None:
        # Every step may find the connection gone: then there is nothing left to put back.
        with contextlib.suppress(gdb.error):
            gdb.execute(f"maintenance packet Qqemu.PhyMemMode:{physical_mode}", to_string=True)
        with contextlib.suppress(gdb.error):
            gdb.execute("detach" if run else "disconnect", to_string=True)

    registry.connect(put_back)
