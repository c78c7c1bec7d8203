"""Compiling a kernel's own ``arch/arm64/kvm/hyp/pgtable.c``, unmodified, into a shared library for this host.

Which calls a kernel has, and with which arguments, is read from its ``kvm_pgtable.h`` (`FEATURES`).  Nothing of the
kernel is kept in this package: a build's own folder holds copies of the few files, and a header of single macros read
out of the tree.  Builds are kept by content: the same files, shims, options and compiler are compiled once.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspector.crosscheck.tree import ASM, EXCERPTS, HEADER, HEADERS, PGTABLE, SYSREG, Tree
from inspector.findings import BadInput, Untestable

OURS: Final = Path(__file__).resolve().parent / "c"
"""The harness and the shims."""

STUBS: Final = (
    "linux/bitfield.h",
    "linux/bits.h",
    "linux/kvm_host.h",
    "linux/pgtable.h",
    "linux/types.h",
    "asm/esr.h",
    "asm/memory.h",
    "asm/sysreg.h",
    "asm/types.h",
)
"""Headers that the kernel's files include and that the shim stands for."""

FEATURES: Final = {
    "MM_OPS": r"\bstruct kvm_pgtable_mm_ops \{",
    "STAGE2_FLAGS": r"\benum kvm_pgtable_stage2_flags \{",
    "SOFTWARE_BITS": r"\bKVM_PGTABLE_PROT_SW0\b",
    "GET_LEAF": r"\bkvm_pgtable_get_leaf\(",
    "HYP_UNMAP": r"\bkvm_pgtable_hyp_unmap\(",
    "MAP_FLAGS": r"\bkvm_pgtable_stage2_map\([^;]*\bflags\)",
    "SHARED": r"\bKVM_PGTABLE_WALK_SHARED\b",
    "HANDLE_FAULT": r"\bKVM_PGTABLE_WALK_HANDLE_FAULT\b",
    "IGNORE_EAGAIN": r"\bKVM_PGTABLE_WALK_IGNORE_EAGAIN\b",
    "SKIP": r"\bKVM_PGTABLE_WALK_SKIP_BBM_TLBI\b",
    "FREE_UNLINKED_TABLE": r"\(\*free_unlinked_table\)",
    "FREE_UNLINKED": r"\bkvm_pgtable_stage2_free_unlinked\(",
    "CREATE_UNLINKED": r"\bkvm_pgtable_stage2_create_unlinked\(",
    "SPLIT": r"\bkvm_pgtable_stage2_split\(",
    "SET_OWNER": r"\bkvm_pgtable_stage2_set_owner\(",
    "ANNOTATE": r"\bkvm_pgtable_stage2_annotate\(",
    "MKYOUNG_FLAGS": r"\bvoid kvm_pgtable_stage2_mkyoung\([^;]*\bflags\)",
    "RELAX_FLAGS": r"\bkvm_pgtable_stage2_relax_perms\([^;]*\bflags\)",
    "MKOLD": r"\bkvm_pgtable_stage2_mkold\(",
    "IS_YOUNG": r"\bkvm_pgtable_stage2_is_young\(",
    "TEST_CLEAR_YOUNG": r"\bkvm_pgtable_stage2_test_clear_young\(",
    "DESTROY_RANGE": r"\bkvm_pgtable_stage2_destroy_range\(",
    "SIGNED_LEVEL": r"\bs8\s+\*level\b",
    "NORMAL_NC": r"\bKVM_PGTABLE_PROT_NORMAL_NC\b",
    "PX_UX": r"\bKVM_PGTABLE_PROT_PX\b",
    "NOFWB": r"\bKVM_PGTABLE_S2_NOFWB\b",
    "AS_S1": r"\bKVM_PGTABLE_S2_AS_S1\b",
    "LOCKED_BIT": r"\bKVM_INVALID_PTE_LOCKED\b",
    "LOCKED_TYPE": r"\bKVM_INVALID_PTE_TYPE_LOCKED\b",
}
"""What differs between kernels: HAVE_<name> is defined when the pattern is found in kvm_pgtable.h without comments."""

GRANULES: Final = {"4k": 12, "16k": 14, "64k": 16}
"""``PAGE_SHIFT`` by the name of the page size."""

CFLAGS: Final = (
    "-O1",
    "-g",
    "-std=gnu11",
    "-fPIC",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fno-delete-null-pointer-checks",
    "-Werror=implicit-function-declaration",
)
"""As the kernel compiles: two's complement overflow, no type-based alias analysis.  Warnings are its own business."""


_SHADOW: Final = 0x1000_0000_0000
"""Where the shadow of address 0 would be: that of a process' stack is free then."""

_SANITIZE: Final = (
    # The compiler's passes as for KASAN, every check a call to a callback of ours.
    "-fsanitize=kernel-address",
    f"-fasan-shadow-offset={_SHADOW}",
    "-fsanitize-address-use-after-scope",
    "--param=asan-stack=1",
    "--param=asan-globals=0",
    "--param=asan-instrumentation-with-call-threshold=0",
    # What the kernel's CONFIG_UBSAN options ask for.
    "-fsanitize=bounds,shift,integer-divide-by-zero,unreachable,bool,enum,alignment,vla-bound",
)


@dataclass(frozen=True)
class Variant:
    """One way to build the file.

    ``pa_bits`` 48 or 52 is CONFIG_ARM64_PA_BITS (``None``: 52 with 64K pages, as only there it changes a page table
    without LPA2); ``hyp`` is the nVHE hypervisor's flavour of the walker (no RCU, no shared walks);
    with ``every_access`` the compiler reports each load and store of the kernel's code to interleave.c, also those
    that go through no macro; with ``coverage`` it counts for gcov which lines and branches run; with ``sanitize`` each
    of its loads and stores is checked, and what C leaves undefined (sanitize.c).
    """

    granule: str = "4k"
    pa_bits: int | None = None
    hyp: bool = False
    every_access: bool = False
    coverage: bool = False
    sanitize: bool = False

    @property
    def name(self) -> str:
        """``4k``, ``64k-pa48``, ``4k-hyp``."""
        return (
            self.granule
            + (f"-pa{self.pa_bits}" if self.pa_bits else "")
            + ("-hyp" if self.hyp else "")
            + ("-every-access" if self.every_access else "")
            + ("-coverage" if self.coverage else "")
            + ("-sanitize" if self.sanitize else "")
        )

    def defines(self) -> list[str]:
        """What the kernel's configuration and build would define."""
        shift = GRANULES[self.granule]
        found = [f"PAGE_SHIFT={shift}", f"CONFIG_ARM64_{self.granule.upper()}_PAGES=1", "CONFIG_ARM64_HW_AFDBM=1"]
        if (self.pa_bits or (52 if shift == 16 else 48)) == 52:
            found.append("CONFIG_ARM64_PA_BITS_52=1")
        if self.hyp:
            found.append("__KVM_NVHE_HYPERVISOR__=1")
        if self.every_access:
            found.append("HARNESS_EVERY_ACCESS=1")
        if self.sanitize:
            found += ["HARNESS_SANITIZE=1", f"HARNESS_SHADOW={_SHADOW}UL"]
        return found

    def kernel_flags(self) -> list[str]:
        """Flags for the kernel's file alone."""
        # ThreadSanitizer's pass, with callbacks of ours in place of its library.
        flags = ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1"] if self.every_access else []
        flags += _SANITIZE if self.sanitize else ()
        # Without optimisation, so that a line's count is that of its statements.
        return [*flags, *(["--coverage", "-O0"] if self.coverage else [])]

    def link_flags(self) -> list[str]:
        """Flags for the whole library."""
        return ["-lgcov"] if self.coverage else []


def excerpt(text: str, names: str) -> str:
    """The ``#define`` lines of ``text``, continuation lines included, whose macro is named ``names`` (a
    pattern)."""
    found = re.finditer(rf"^#define[ \t]+(?:{names})(?![\w])(?:.*\\\n)*.*$", text, re.MULTILINE)
    return "\n".join(match.group(0) for match in found)


def sysreg_header(text: str, register: str) -> str:
    """The field macros of one register of ``arch/arm64/tools/sysreg``: mask, shift, and the values of
    enumerations.

    The file's grammar: ``Sysreg NAME ...`` … ``EndSysreg``, within it ``Field hi:lo NAME``, ``Enum hi:lo
    NAME`` followed by ``0bVALUE NAME`` lines, ``Res0 hi:lo`` and ``Res1 hi:lo``.
    """
    block = re.search(rf"^Sysreg\s+{register}\s.*?^EndSysreg", text, re.MULTILINE | re.DOTALL)
    if block is None:
        return ""
    lines, field, res1 = [], "", 0
    for line in block.group(0).splitlines():
        words = line.split()
        if words and words[0] in ("Field", "Enum", "UnsignedEnum", "SignedEnum", "Res0", "Res1"):
            high, _, low = words[1].partition(":")
            low = low or high
            mask = (1 << (int(high) + 1)) - (1 << int(low))
            if words[0] == "Res1":
                res1 |= mask
            elif words[0] != "Res0":
                field = f"{register}_{words[2]}"
                lines += [f"#define {field} {mask:#x}UL", f"#define {field}_MASK {mask:#x}UL"]
                lines += [f"#define {field}_SHIFT {low}"]
        elif words and re.fullmatch(r"0b[01]+", words[0]):
            lines.append(f"#define {field}_{words[1]} {int(words[0], 2):#x}UL")
    return "\n".join([*lines, f"#define {register}_RES1 {res1:#x}UL"])


def features(header: str) -> list[str]:
    """The names of `FEATURES` that a kernel's ``kvm_pgtable.h`` has."""
    code = re.sub(r"/\*.*?\*/", " ", header, flags=re.DOTALL)
    return [name for name, pattern in FEATURES.items() if re.search(pattern, code)]


def stage(tree: Tree, folder: Path) -> Path:
    """Copies of the kernel's files, stubs for the headers that the shim stands for, the excerpts; the C file."""
    for name in ("asm", "linux"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in HEADERS:
        (folder / "asm" / name).write_text(tree.text[f"{ASM}/{name}"])
    for name in STUBS:
        (folder / name).write_text('#include "shim.h"\n')
    parts = [excerpt(tree.text[f"{ASM}/{name}"], names) for name, names in EXCERPTS.items()]
    if "VTCR_EL2_PS_SHIFT" not in tree.text[f"{ASM}/kvm_arm.h"]:
        parts.append(sysreg_header(tree.text.get(SYSREG, ""), "VTCR_EL2"))
    (folder / "excerpts.h").write_text("\n".join(["/* Read out of the kernel tree at build time. */", *parts, ""]))
    (folder / "pgtable.c").write_text(tree.text[PGTABLE])
    return folder / "pgtable.c"


_LACKING = re.compile(
    r"implicit declaration of function '(\w+)'"
    r"|'(\w+)' undeclared"
    r"|unknown type name '(\w+)'"
    r"|has no member named '(\w+)'"
    r"|fatal error: (\S+): No such file"
    r"|undefined reference to `(\w+)'"
)


@functools.cache
def compiler() -> str:
    """The first line of ``gcc --version``.  Raises `Untestable` when there is none."""
    try:
        done = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Untestable("there is no gcc here to compile the kernel's code with: install the package gcc") from None
    return done.stdout.partition("\n")[0]


def _key(tree: Tree, command: list[str]) -> str:
    digest = hashlib.sha256()
    ours = {path.name: path.read_text() for path in sorted(OURS.iterdir()) if path.suffix in (".c", ".h", ".S")}
    for part in (compiler(), *command, *ours, *ours.values(), *tree.text, *tree.text.values()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def options_of(tree: Tree, variant: Variant) -> list[str]:
    """The compiler's options for all of a build."""
    options = [*CFLAGS, *(f"-D{define}" for define in variant.defines())]
    options += [f"-DHAVE_{feature}=1" for feature in features(tree.text[HEADER])]
    options.append(f'-DHARNESS_RELEASE="{tree.release}"')
    return options


def build(tree: Tree, variant: Variant, cache: Path) -> Path:
    """The library, built unless ``cache`` has it.

    Raises `Untestable` when the file does not compile with the shims; the sentence shows the compiler's first error.
    """
    options = options_of(tree, variant)
    home = cache / _key(tree, [*options, *variant.kernel_flags(), *variant.link_flags()])
    library = home / f"pgtable-{variant.name}.so"
    if library.is_file():
        return library
    with _folder_in(cache) as name:
        folder = Path(name) / home.name
        file = stage(tree, folder)
        compile_all = ["gcc", *options, f"-I{folder}", f"-I{OURS}"]
        kernel_object = str(folder / "pgtable.o")
        returned, said = _compile(
            [*compile_all, *variant.kernel_flags(), "-c", "-o", kernel_object, str(file)], Path(name)
        )
        if not returned:
            ours = [str(path) for path in sorted(OURS.glob("*.c"))]
            linked = ["-shared", "-Wl,-z,defs", "-o", str(folder / library.name)]
            returned, said = _compile([*compile_all, *linked, kernel_object, *ours, *variant.link_flags()], Path(name))
        if returned:
            raise Untestable(_explain(tree, variant, said, folder))
        try:
            folder.rename(home)
        except OSError:  # another process was faster
            if not library.is_file():
                shutil.rmtree(home, ignore_errors=True)
                folder.replace(home)
    return library


def _folder_in(cache: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".building-", dir=cache)
    except OSError as error:
        raise BadInput(
            f"what is built cannot be kept in {cache}: {error.strerror}; set $INSPECTOR_HARNESS_BUILD to another folder"
        ) from None


def _compile(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and errors of the compiler.  When we are interrupted, neither its processes nor its files stay."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
        start_new_session=True,
    ) as process:
        try:
            said = process.communicate()[1]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said


def _explain(tree: Tree, variant: Variant, said: str, folder: Path) -> str:
    errors = [line for line in said.splitlines() if "error:" in line or "undefined reference" in line]
    first = (errors or said.strip().splitlines() or ["it says nothing"])[0].replace(f"{folder}/", "")
    names = lacking(said)
    named = f"neither the shims nor what is compiled of the tree have {', '.join(names[:4])}; " if names else ""
    more = f"and {len(names) - 4} more; " if len(names) > 4 else ""
    return f"{PGTABLE} of {tree.origin} does not compile with the harness ({variant.name}): {named}{more}{first}"


def lacking(said: str) -> list[str]:
    """The functions, types, members and headers that gcc and ld (in the C locale) say are nowhere, in their order."""
    found = (next(filter(None, match.groups())) for match in _LACKING.finditer(said))
    return list(dict.fromkeys(found))
