"""The pretty printers, in a real gdb, on planted objects; what they must say is by hand, from the values planted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What gdb prints for each expression."""
    planted = tmp_path_factory.mktemp("printers") / "planted.o"
    source = Path(__file__).with_name("planted.c")
    subprocess.run(["aarch64-linux-gnu-gcc", "-g", "-c", "-o", str(planted), str(source)], check=True)
    names = ("pgt", "mmu", "ctx", "table", "block", "nothing", "number")
    command = ["gdb-multiarch", "-nx", "-q", "-batch", str(planted), "-ex", f"source {REPO / 'gdb_scripts/stage2.py'}"]
    for name in names:
        command += ["-ex", f"p {name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return dict(zip(names, (line.partition(" = ")[2] for line in done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "pgt",
            "40-bit input address, starts at level 1, pgd 0xffff000007d1f000, mmu 0x0, flags KVM_PGTABLE_S2_AS_S1",
        ),
        ("mmu", "VMID 13, root at PA 0x480fa000, "),
        ("mmu", "40-bit IPA, 4K granule, 48-bit PA, starts at level 1 with 2 root tables"),
        ("ctx", "level 2, address 0x80005000 of 0x80000000 to 0x80600000, "),
        ("ctx", "old 0x0040000047a007d9 (block PA 0x47a00000 RW- "),
        ("ctx", "flags KVM_PGTABLE_WALK_SHARED"),
        ("table", "0x0000000047d1f003, table, or page at level 3"),
        ("block", "0x0040000047a007d9, block, or reserved at level 3"),
        ("nothing", "0x0000000000000000, invalid"),
        ("number", "3"),
    ],
)
def test_a_value(said: dict[str, str], name: str, words: str) -> None:
    assert words in said[name]
