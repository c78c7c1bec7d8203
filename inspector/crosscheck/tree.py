"""A kernel tree as this room needs it: the few files that a build reads, wherever they come from."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspector.findings import BadInput

PGTABLE: Final = "arch/arm64/kvm/hyp/pgtable.c"
ASM: Final = "arch/arm64/include/asm"
SYSREG: Final = "arch/arm64/tools/sysreg"
HEADER: Final = f"{ASM}/kvm_pgtable.h"

HEADERS: Final = ("kvm_pgtable.h", "stage2_pgtable.h", "kvm_arm.h")
"""Kernel headers compiled as they are."""

EXCERPTS: Final = {
    "memory.h": r"MT_\w+",
    "pgtable-hwdef.h": r"ARM64_HW_PGTABLE_LEVELS|ARM64_HW_PGTABLE_LEVEL_SHIFT|PTRS_PER_PTE|PTE_S2_MEMATTR"
    r"|PTDESC_\w+|TCR_\w+",
    "pgtable-prot.h": r"PAGE_S2_MEMATTR",
    "tlbflush.h": r"__TLBI_RANGE_PAGES|MAX_TLBI_RANGE_PAGES|TLBI_TTL_UNKNOWN",
}
"""Single macros (by the start of their names) read out of headers that are too entangled to compile on a host."""

NEEDED: Final = ("Makefile", PGTABLE, SYSREG, *(f"{ASM}/{name}" for name in (*HEADERS, *EXCERPTS)))
"""Every file of a kernel tree that a build reads."""


@dataclass(frozen=True)
class Tree:
    """The files of `NEEDED`: ``text`` by their path in the kernel tree; ``origin`` is where they were read."""

    origin: Path
    text: dict[str, str]

    @property
    def release(self) -> str:
        """The release that the top Makefile names, e.g. ``6.12.117``."""
        parts = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL)\s*=\s*(\d+)", self.text["Makefile"], re.MULTILINE))
        return ".".join(parts.get(name, "?") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


def read_tree(source: Path, cache: Path) -> Tree:
    """The tree of a kernel source: a directory, a tarball, or Debian's ``linux-source-*.deb``.

    Of the latter two only the needed files are unpacked, into ``cache``.  Raises `BadInput` when it is none.
    """
    folder = source if source.is_dir() else unpack(source, cache)
    text = {}
    for name in NEEDED:
        try:
            text[name] = (folder / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"{source}: no {name} there; give a kernel tree, its tarball or a linux-source package"
            ) from error
    return Tree(source, text)


def unpack(archive: Path, cache: Path) -> Path:
    """The files named in `NEEDED` out of a kernel tarball or a ``linux-source`` package, as a tree under ``cache``.

    Streams: only these files are written.  Members sit one directory deep (``linux-source-6.12/...``).
    Raises `BadInput` when they are not all there.
    """
    tree = cache / "source" / archive.name
    if all((tree / name).is_file() for name in NEEDED):
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=tree.name, dir=tree.parent))
    members = [f"*/{name}" for name in NEEDED]
    extract = ["tar", "-x", "--wildcards", "--no-wildcards-match-slash", "--strip-components=1"]
    extract += ["-C", str(partial)]
    if archive.suffix == ".deb":
        stream = 'dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "*/linux-source-*.tar.xz"'
        script = stream + ' | { shift; xz -dc | "$@"; }'
        command = ["bash", "-c", script, "bash", str(archive), *extract, "-f", "-", *members]
    else:
        command = [*extract, "-f", str(archive), *members]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    missing = [name for name in NEEDED if not (partial / name).is_file()]
    if missing:
        shutil.rmtree(partial)
        raise BadInput(
            f"{archive}: no {missing[0]} in it ({done.stderr.strip() or 'nothing else was said'}); "
            "give a kernel tree, its tarball or a linux-source package"
        )
    if tree.exists():  # another build was faster, or an older one was cut off
        shutil.rmtree(tree)
    partial.rename(tree)
    return tree
