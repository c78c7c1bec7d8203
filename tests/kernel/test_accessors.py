"""The variable that an accessor names, against the compiler and the linker."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from inspector.kernel.accessors import accessed_address

SOURCE = """
typedef unsigned long u64;
static unsigned int mode = 3;
static unsigned char ready = 1;
static u64 before[5000] = {1};
static u64 array[7] = {1, 2, 3};
unsigned int get_mode(void) { return mode; }
unsigned char is_ready(void) { return ready; }
void *get_array(void) { return array; }
u64 get_element(void) { return array[5]; }
void set(unsigned int m, u64 v) { mode = m; ready = m; before[m] = v; array[m] = v; }
int nothing(void) { return 7; }
"""
ELEMENT = 5 * 8


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("insn")
    (folder / "a.c").write_text(SOURCE)
    subprocess.run(
        [
            "aarch64-linux-gnu-gcc",
            "-O2",
            "-nostdlib",
            "-static",
            "-fno-pie",
            "-no-pie",
            "-fno-section-anchors",
            "-Wl,-e,set",
            "-Wl,-Ttext=0xffff800008010000",
            "-Wl,-Tdata=0xffff800009a00000",
            "a.c",
            "-o",
            "a.elf",
        ],
        cwd=folder,
        check=True,
    )
    subprocess.run(
        ["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", "a.elf", "text.bin"], cwd=folder, check=True
    )
    return folder


def nm(folder: Path) -> dict[str, int]:
    out = subprocess.run(
        ["aarch64-linux-gnu-nm", "a.elf"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    return {line.split()[2]: int(line.split()[0], 16) for line in out.splitlines() if len(line.split()) == 3}


@pytest.mark.parametrize(
    ("function", "variable", "offset"),
    [("get_mode", "mode", 0), ("is_ready", "ready", 0), ("get_array", "array", 0), ("get_element", "array", ELEMENT)],
)
def test_the_variable_of_an_accessor(built: Path, function: str, variable: str, offset: int) -> None:
    symbols = nm(built)
    start = symbols[function]
    text = min(symbols[name] for name in ("get_mode", "is_ready", "get_array", "get_element", "set", "nothing"))
    code = (built / "text.bin").read_bytes()[start - text :][:64]
    assert accessed_address(code, start) == symbols[variable] + offset


def test_a_function_that_names_nothing(built: Path) -> None:
    symbols = nm(built)
    text = min(symbols[name] for name in ("get_mode", "is_ready", "get_array", "get_element", "set", "nothing"))
    code = (built / "text.bin").read_bytes()[symbols["nothing"] - text :][:8]
    assert accessed_address(code, symbols["nothing"]) is None


@pytest.mark.parametrize("code", [b"", b"\0", b"\0\0\0", bytes(64), b"\xff" * 64])
def test_rubbish_names_nothing(code: bytes) -> None:
    assert accessed_address(code, 0xFFFF_8000_0801_0000) is None
