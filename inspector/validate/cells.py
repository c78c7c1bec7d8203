"""What is booted once: a kernel in a configuration with a workload.  Cells know nothing of each other."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from inspector.findings import BadInput, Untestable
from inspector.jobs.cluster import fingerprint
from inspector.jobs.files import digest_of, place_of
from inspector.machines import RUN_QEMU, prepare, require_qemu
from inspector.validate.configurations import Configuration
from inspector.validate.kernels import Kernel
from inspector.validate.run import OPTIONS, Run, run
from inspector.validate.selftests import Selftests


@dataclass(frozen=True)
class Cell:
    """``lines`` are what the exerciser is told, ``trace`` the name of the file that its trace is kept in.

    ``draw``: the course of its operations is wanted; ``keep``: the trace is.  ``selftests`` run in
    place of the exerciser.
    """

    kernel: Kernel
    configuration: Configuration
    lines: tuple[str, ...]
    label: str
    trace: str
    draw: bool = False
    keep: bool = False
    selftests: Selftests | None = None


@dataclass(frozen=True)
class Result:
    """What came of a cell: ``trace`` is empty where it is not wanted."""

    run: Run
    trace: bytes = b""


@dataclass(frozen=True)
class Sent:
    """A cell whose files are known by their content: role (image, vmlinux, initramfs) to SHA-256."""

    cell: Cell
    digests: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What it came to depends on this alone: a kernel, what is booted beside it, what is done, this program."""
        cell = replace(self.cell, kernel=replace(self.cell.kernel, what="", vmlinux="", initramfs=""))
        if cell.selftests is not None:
            cell = replace(cell, selftests=replace(cell.selftests, folder="", title=""))
        told = msgspec.json.encode((cell, dict(sorted(self.digests.items())), scripts(), fingerprint()))
        return hashlib.sha256(told).hexdigest()

    def at(self, place: Callable[[str], Path]) -> Cell:
        """The cell with the files that are at ``place`` by their digests."""
        there = {role: str(place(digest)) for role, digest in self.digests.items()}
        kernel = replace(
            self.cell.kernel,
            what=there["image"],
            vmlinux=there.get("vmlinux", ""),
            initramfs=there["initramfs"],
            title=str(self.cell.kernel),
        )
        return replace(self.cell, kernel=kernel)


def sent(cell: Cell) -> Sent:
    """With all that it boots fetched and built.  Raises `Untestable` and `BadInput` with what run_qemu.sh says."""
    along = cell.selftests.options() if cell.selftests is not None else []
    found = prepare([*cell.kernel.options(), *OPTIONS, *along])
    files = {role: path for role, path in vars(found).items() if path}
    return Sent(cell, {role: digest_of(Path(path)) for role, path in files.items()}, files)


def scripts() -> str:
    """A digest of run_qemu.sh and what it is made of: machines are started by the same everywhere."""
    digest = hashlib.sha256()
    for path in (RUN_QEMU, *sorted((RUN_QEMU.parent / "fixtures/setup").glob("*.sh"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def perform(cell: Cell) -> Result:
    """In a worker process of this machine."""
    result = Run(cell.configuration)
    return Result(result, perform_into(result, cell, lambda text: None))


def perform_into(result: Run, cell: Cell, tell: Callable[[str], None]) -> bytes:
    """Boot it, and put what comes of it into ``result``: whatever ends it, that has what was done by then."""
    with tempfile.TemporaryDirectory(prefix="s2-cell-") as folder:
        file = Path(folder) / cell.trace
        run(cell.kernel, result, cell.lines, file, tell, cell.label, cell.draw, cell.selftests)
        return file.read_bytes() if cell.keep and file.exists() else b""


def perform_there(told: Sent, mark: str) -> Result:
    """On a worker of a cluster, which has the files.  ``mark`` is what `scripts` is here."""
    try:
        same = scripts() == mark
    except OSError:
        raise BadInput(
            "a worker of the cluster has no run_qemu.sh beside its package: run it from a checkout of the project"
        ) from None
    if not same:
        raise BadInput("a worker of the cluster has another run_qemu.sh: use the same checkout everywhere")
    require_qemu()
    return perform(told.at(place_of))


def is_whole(result: Result) -> bool:
    """It need not be done again."""
    return not any(part.code == Untestable.exit_code for part in result.run.parts)
