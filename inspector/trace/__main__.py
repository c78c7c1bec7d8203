"""``python -m inspector.trace``: what run_qemu.sh needs before it starts a machine that can be traced.

Writes ``probe.conf``, ``plan.json`` and ``functions.txt`` into a folder, and prints the probe's library.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from inspector.findings import InspectorError
from inspector.symbols.opening import open_symbols
from inspector.trace.names import FUNCTIONS_FILE, listed
from inspector.trace.plan import make_plan
from inspector.trace.plugin import api_of, build, version_of


def page_shift_of(flags: bytes | None) -> int:
    """log2 of the page size by the Image's header (Documentation/arch/arm64/booting.rst: flags, bits 2:1)."""
    return {2: 14, 3: 16}.get(int.from_bytes(flags or b"", "little") >> 1 & 3, 12)


def main() -> int:
    """0, or the exit code of what is wrong, said in a sentence on standard output."""
    parser = argparse.ArgumentParser(prog="python -m inspector.trace", description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--vmlinux", type=Path)
    parser.add_argument("--qemu", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    try:
        version = version_of(given.qemu)
        library = build(api_of(version), given.cache)
        symbols = open_symbols(image=given.image, vmlinux=given.vmlinux)
        plan = make_plan(symbols, page_shift_of(symbols.image_bytes(24, 8)))
    except InspectorError as error:
        print(error)
        return int(error.exit_code)
    (given.folder / "probe.conf").write_text(plan.config())
    (given.folder / "plan.json").write_text(json.dumps({**plan.header(), "qemu": version}))
    (given.folder / FUNCTIONS_FILE).write_text(listed(symbols))
    print(library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
