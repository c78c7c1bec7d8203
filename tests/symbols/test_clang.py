"""What clang and lld write, which gcc and ld do not: built here with them, for arm64."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from inspector.findings import BadInput
from inspector.symbols import KernelSymbols, open_symbols
from tests.symbols.build import types
from tests.symbols.compiled import GCC, OBJCOPY

CLANG = ("clang", "--target=aarch64-linux-gnu")
# A function of kvm_main.c with a variable that moves (a location list), and a unit that is none of the kernel's.
KVM_MAIN = """
struct kvm { unsigned long users; };
int work(int);
int kvm_vm_release(int a) { int b = a * 3; for (int i = 0; i < a; i++) b += work(b); return b; }
int work(int x) { return x * x; }
void _text(void) {}
struct kvm kvm;
"""
OTHER = """
struct declared;
struct special_outside { long first; int table[3]; struct declared *pointer; } outside;
enum special_enum { SPECIAL_ONE = 1, SPECIAL_SEVEN = 7 } value;
"""
# Importing kvm_run into the other unit, ThinLTO has to make kvm_vm_release global.
PROMOTED = """
int counter;
static __attribute__((noinline)) int kvm_vm_release(int a) { counter += a; return counter * a; }
int kvm_run(int a) { return kvm_vm_release(a) + 1; }
"""
CALLER = "int kvm_run(int a); void _text(void) { kvm_run(3); }"
CFI = """
int counter;
static int kvm_vm_release(int a) { counter += a; return counter * a; }
int (*volatile table[])(int) = { kvm_vm_release };
void _text(void) { table[0](counter); }
"""
CFI_FLAGS = (
    "-flto=thin",
    "-fvisibility=hidden",
    "-fsanitize=cfi-icall",
    "-fno-sanitize-cfi-canonical-jump-tables",
    "-fno-sanitize-ignorelist",
    "-fsanitize-trap=cfi",
)


def build(folder: Path, sources: dict[str, str], compiler: tuple[str, ...], *flags: str) -> Path:
    """Each source compiled by itself, then linked at the address of a kernel."""
    for program in (compiler[0], "ld.lld"):
        assert shutil.which(program), f"install {program}"
    for name, text in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        command = [*compiler, "-ffreestanding", *flags, "-c", name, "-o", f"{name}.o"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    objects = [f"{name}.o" for name in sources]
    link = ["ld.lld", "-Ttext=0xffff800080000000", "--entry=_text", *objects, "-o", "vmlinux"]
    subprocess.run(link, cwd=folder, check=True, capture_output=True)
    return folder / "vmlinux"


def nm(path: Path) -> dict[str, int]:
    lines = subprocess.run(["nm", str(path)], capture_output=True, check=True, text=True).stdout.splitlines()
    return {name: int(address, 16) for address, _, name in (line.split() for line in lines)}


def with_types(path: Path, tmp_path: Path) -> KernelSymbols:
    """The symbols of an ELF file that need not have DWARF: any types serve."""
    blob = tmp_path / "btf"
    blob.write_bytes(types())
    subprocess.run([OBJCOPY, f"--add-section=.BTF={blob}", str(path)], check=True, capture_output=True)
    return open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("version", ["4", "5"])
def test_types_of_a_clang_kernel(tmp_path: Path, version: str) -> None:
    """DWARF 5 has .debug_loclists, and names by DW_FORM_strx; other.c's types are only found by their name."""
    sources = {"virt/kvm/kvm_main.c": KVM_MAIN, "other.c": OTHER}
    path = build(tmp_path, sources, CLANG, f"-gdwarf-{version}", "-O1")
    symbols = open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")
    assert symbols.description == f"vmlinux {path} (DWARF, symtab)"
    assert symbols.sizeof("kvm") == 8
    assert symbols.sizeof("special_outside") == 32
    assert symbols.member("special_outside", "table").offset == 8
    assert symbols.enumerator("special_enum", "SPECIAL_SEVEN") == 7
    assert symbols.enumerator("", "SPECIAL_ONE") == 1
    assert symbols.struct("declared") is None
    assert symbols.struct("special_absent") is None


def test_aranges_of_assembly_alone_do_not_hide_the_rest(tmp_path: Path) -> None:
    """clang writes .debug_aranges for assembly files, and for no others."""
    assembly = ".text\n.globl head\nhead: ret\n"
    sources = {"head.s": assembly, "virt/kvm/kvm_main.c": KVM_MAIN}
    path = build(tmp_path, sources, CLANG, "-gdwarf-5", "-O1")
    sections = subprocess.run(["readelf", "-SW", str(path)], capture_output=True, check=True, text=True).stdout
    assert ".debug_aranges" in sections
    assert open_symbols(vmlinux=path, cache_dir=tmp_path / "cache").sizeof("kvm") == 8


@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("compiler", [CLANG, (GCC,)], ids=["clang", "gcc"])
def test_split_dwarf_is_named_for_what_it_is(tmp_path: Path, compiler: tuple[str, ...], version: str) -> None:
    path = build(tmp_path, {"virt/kvm/kvm_main.c": KVM_MAIN}, compiler, f"-gdwarf-{version}", "-gsplit-dwarf", "-O1")
    with pytest.raises(BadInput, match=r"lie in \.dwo files: switch CONFIG_DEBUG_INFO_SPLIT off$"):
        open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")


def test_a_function_that_thinlto_made_global(tmp_path: Path) -> None:
    path = build(tmp_path, {"a.c": PROMOTED, "b.c": CALLER}, CLANG, "-O2", "-flto=thin")
    (promoted,) = (name for name in nm(path) if name.startswith("kvm_vm_release"))
    assert promoted.startswith("kvm_vm_release.llvm.")
    symbols = with_types(path, tmp_path)
    address = symbols.require("kvm_vm_release")
    assert address == nm(path)[promoted]
    assert symbols.table.nearest_text(address + 4) == ("kvm_vm_release", 4)


def test_an_entry_of_cfis_table_is_not_the_function(tmp_path: Path) -> None:
    path = build(tmp_path, {"a.c": CFI}, CLANG, "-O2", *CFI_FLAGS)
    names = nm(path)
    (entry,) = (name for name in names if name.startswith("kvm_vm_release.") and name.endswith(".cfi_jt"))
    promoted = entry.removesuffix(".cfi_jt")
    symbols = with_types(path, tmp_path)
    assert symbols.require("kvm_vm_release") == names[promoted]
    assert symbols.require("kvm_vm_release.cfi_jt") == names[entry] != names[promoted]
