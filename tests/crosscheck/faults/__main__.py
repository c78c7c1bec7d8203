"""``python -m tests.crosscheck.faults``: each fault, and the seconds in which each channel sees it."""

from __future__ import annotations

import argparse
import json
import sys

from tests.crosscheck import kernels
from tests.crosscheck.faults.catalogue import ALL, Channel
from tests.crosscheck.faults.measure import look


def main() -> int:
    """0 when every fault is seen by all of its owners, and the kernel itself by none."""
    parser = argparse.ArgumentParser(prog="python -m tests.crosscheck.faults", description=__doc__)
    parser.add_argument("--source", default="6.12", metavar="SERIES", help="6.12 (default), 7.2 or 7.3")
    parser.add_argument("--json", action="store_true", help="one object a fault")
    given = parser.parse_args()
    if kernels.source(given.source) is None:
        parser.error(f"no source of {given.source} at hand: ./run_qemu.sh test --collect-only fetches it")
    true = kernels.kernel(given.source)
    missed, rows = [], []
    for name, kernel, owners in [
        ("the kernel itself", true, ()),
        *((fault.name, fault.patch.put_on(true), fault.owners) for fault in ALL),
    ]:
        seen = {channel: look(kernel, channel) for channel in Channel}
        wrong = [channel for channel in owners if seen[channel] is None]
        wrong += [channel for channel in Channel if not owners and seen[channel] is not None]
        missed += [(name, channel) for channel in wrong]
        cells = {str(channel): None if found is None else round(found.seconds, 1) for channel, found in seen.items()}
        rows.append({"fault": name, "owners": list(owners), **cells})
        if not given.json:
            _print(name, cells, first=len(rows) == 1)
    if given.json:
        json.dump(rows, sys.stdout, indent=1)
        print()
    for name, channel in missed:
        print(f"wrong: {name}: {channel}", file=sys.stderr)
    return 1 if missed else 0


def _print(name: str, cells: dict[str, float | None], *, first: bool) -> None:
    if first:
        print(f"{'fault, seconds to see it':64}" + "".join(f"{channel:>14}" for channel in cells))
    print(f"{name:64}" + "".join(f"{'-' if one is None else one:>14}" for one in cells.values()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
