"""A kernel tree as this room needs it: the few files that a build reads, wherever they come from."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspector.findings import BadInput, InspectorError, Untestable
from inspector.printable import printable

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

OPTIONAL: Final = frozenset({SYSREG})
"""Of `NEEDED` what older kernels do not have (the table of system registers is there since 5.19)."""

NEEDED: Final = ("Makefile", PGTABLE, SYSREG, *(f"{ASM}/{name}" for name in (*HEADERS, *EXCERPTS)))
"""Every file of a kernel tree that a build reads."""

Read = Callable[[str], bytes | None]
"""The contents of a file by its path in a kernel tree; ``None`` when it has none."""


@dataclass(frozen=True)
class Tree:
    """The files of `NEEDED`: ``text`` by their path in the kernel tree; whatever ended lines there, ``\\n`` does here.

    A file of `OPTIONAL` that the kernel lacks is not in ``text``.  ``origin`` says where they were read.
    """

    origin: str
    text: dict[str, str]

    @property
    def release(self) -> str:
        """The release that the top Makefile names, e.g. ``6.12.117``."""
        return release(self.text["Makefile"])


def release(makefile: str) -> str:
    """The release that a kernel's top Makefile names: ``6.12.117``, ``6.13.0-rc2``; ``?`` for a part it lacks."""
    given = re.findall(r"^([A-Z]+)[ \t]*=[ \t]*([\w.+-]+)[ \t]*$", makefile, re.MULTILINE)
    parts: dict[str, str] = dict(reversed(given))  # the first counts
    numbers = ".".join(parts.get(name, "?") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
    return numbers + parts.get("EXTRAVERSION", "")


def assemble(origin: str, read: Read) -> Tree:
    """The tree whose files ``read`` gives.

    Raises `BadInput` when it is no kernel tree, and `Untestable` when it is one without KVM's page-table code for arm64
    (which ``git bisect run`` then skips).
    """
    text: dict[str, str] = {}
    for name in NEEDED:
        found = read(name)
        if found is None and name in OPTIONAL:
            continue
        if found is None:
            raise _lacking(origin, name, text.get("Makefile", ""))
        try:
            text[name] = found.decode().replace("\r\n", "\n")
        except UnicodeDecodeError:
            raise BadInput(f"{origin}: {name} is not text in UTF-8, as every file of a kernel is") from None
    return Tree(origin, text)


def _lacking(origin: str, name: str, makefile: str) -> InspectorError:
    known = release(makefile)
    if "?" in known:
        return BadInput(f"{origin} is no kernel tree: give one, its tarball, or a linux-source package")
    return Untestable(
        f"{origin}: Linux {known} has no {name} here; KVM's page-table code for arm64 is in a file of its own since "
        "5.10, so give a newer or a complete kernel tree"
    )


def read_tree(source: Path, cache: Path) -> Tree:
    """The tree of a kernel source: a directory, a tarball, or Debian's ``linux-source-*.deb``.

    Of the latter two only the needed files are unpacked, into ``cache``.  Raises as `assemble` does, and `BadInput`
    when it cannot be read.
    """
    if not exists(source):
        raise BadInput(f"{source} does not exist: give a kernel tree, its tarball, or a linux-source package")
    folder = source if source.is_dir() else unpack(source, cache)
    return assemble(str(source), lambda name: read_file(folder / name))


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, as far as we may see; whatever the text, nothing is raised."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_file(path: Path) -> bytes | None:
    """What a file holds, ``None`` when there is none.  Raises `BadInput` when it may not be read."""
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def unpack(archive: Path, cache: Path) -> Path:
    """The files named in `NEEDED` out of a kernel tarball or a ``linux-source`` package, as a tree under ``cache``.

    Streams: only these files are written.  Members sit one directory deep (``linux-source-6.12/...``).  The folder is
    named for the very file (its place, size and time) and for what was wanted of it.  Raises `BadInput` when it is no
    such archive.
    """
    try:
        known = archive.stat()
    except OSError as error:
        raise BadInput(f"{archive} cannot be read: {error.strerror}") from None
    key = repr((str(archive.resolve()), known.st_size, known.st_mtime_ns, NEEDED))
    tree = cache / "source" / f"{archive.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if tree.is_dir():
        return tree
    try:
        tree.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{tree.parent} cannot be made: {error.strerror}; name another cache folder") from None
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=tree.parent) as name:
        partial = Path(name) / "tree"
        partial.mkdir()
        said = _extract(archive, partial)
        if not (partial / "Makefile").is_file():
            why = printable(said.strip().splitlines()[0]) if said.strip() else "it holds no linux-*/Makefile"
            raise BadInput(
                f"{archive} is no kernel source: give a kernel tree, its tarball, or a linux-source package ({why})"
            )
        # Another run may have been faster.
        with contextlib.suppress(OSError):
            partial.rename(tree)
    return tree


def _extract(archive: Path, target: Path) -> str:
    """Unpack the needed members into ``target``, as many as there are; what the programs said."""
    members = [f"*/{name}" for name in NEEDED]
    command = ["tar", "-x", "--wildcards", "--no-wildcards-match-slash", "--strip-components=1"]
    command += ["--no-same-owner", "--no-same-permissions", "-C", str(target)]
    if archive.suffix == ".deb":
        stream = 'dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "*/linux-source-*.tar.xz"'
        script = stream + ' | { shift; xz -dc | "$@"; }'
        command = ["bash", "-c", script, "bash", str(archive.absolute()), *command, "-f", "-", *members]
    else:
        command = [*command, "-f", str(archive.absolute()), *members]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise BadInput(f"{archive} cannot be unpacked: {command[0]}: {error.strerror}; install it") from None
    return done.stderr.decode(errors="replace")
