"""Kernels that are judged: an Image that is there, or one that run_qemu.sh builds from a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inspector import machines
from inspector.crosscheck.package import fetch_package, is_package
from inspector.findings import BadInput
from inspector.printable import printable

Tell = Callable[[str], None]
_LISTING = "\nCONFIG_PTDUMP_STAGE2_DEBUGFS=y\n"


@dataclass(frozen=True)
class Kernel:
    """``what`` as run_qemu.sh's --kernel takes it; ``title`` is what a reader knows it by (empty: the same).

    ``lists``: it was built so that it prints its own listing of a table, and must.  ``initramfs`` is booted with it
    (empty: the exerciser's, made here).
    """

    what: str
    vmlinux: str = ""
    title: str = ""
    lists: bool = False
    initramfs: str = ""

    def options(self) -> list[str]:
        """Of run_qemu.sh."""
        options = ["--kernel", self.what, *(["--vmlinux", self.vmlinux] if self.vmlinux else [])]
        return [*options, *(["--initramfs", self.initramfs] if self.initramfs else [])]

    def __str__(self) -> str:
        return self.title or self.what


@dataclass(frozen=True)
class Build:
    """A kernel that is built first: from ``place``, a tree or a file that holds one, or from a ``revision`` of it.

    ``edits`` are files of them, as in fixtures/edits.
    """

    place: Path
    name: str
    patches: Sequence[Path] = ()
    revision: str | None = None
    page_size: str = "4k"
    debug: bool = False
    edits: Sequence[Path] = ()

    @property
    def title(self) -> str:
        """What a reader knows it by."""
        name = f"{self.revision} of {self.name}" if self.revision is not None else self.name
        changed = [*self.patches, *self.edits]
        patches = f" with {', '.join(each.name for each in changed)}" if changed else ""
        return printable(f"{name}{patches}, built with {self.page_size} pages{' and debugging' if self.debug else ''}")

    def make(self, tell: Tell) -> Kernel:
        """Raises `machines.NotBuilt`, and `BadInput` for what is no source or no patch."""
        arguments = [str(self.place), "--page-size", self.page_size]
        arguments += ["--revision", self.revision] if self.revision is not None else []
        arguments += ["--debug-kernel"] if self.debug else []
        arguments += [word for patch in self.patches for word in ("--patch", str(patch))]
        arguments += [word for edit in self.edits for word in ("--edit", str(edit))]
        folder = machines.build(arguments, tell)
        lists = _LISTING in (folder / "config").read_text()
        return Kernel(str(folder / "Image"), str(folder / "vmlinux"), self.title, lists)


def place_of(package: str, cache: Path, tell: Tell) -> Path:
    """The file of Debian's package of that name.  Raises `BadInput` when there is none."""
    return fetch_package(package, cache, tell)


def baseline_of(given: str, build: Build, cache: Path, tell: Tell) -> Build:
    """What ``--baseline`` names, built as ``build`` is: a tree or a file, a package, or a revision of its tree."""
    if given and Path(given).exists():
        return Build(Path(given), given, page_size=build.page_size, debug=build.debug)
    if is_package(given):
        return Build(place_of(given, cache, tell), given, page_size=build.page_size, debug=build.debug)
    if not build.place.is_dir():
        raise BadInput(
            f"the baseline '{given}' is neither a tree, nor a file, nor a linux-source package; a git revision it can "
            "only be where the source is a git tree"
        )
    return Build(build.place, build.name, (), given, build.page_size, build.debug)
