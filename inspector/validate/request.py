"""What the command line asks for, made into a `Request`: which kernels, built or given, and what is looked at first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inspector.codec import GRANULES
from inspector.crosscheck.package import is_package
from inspector.crosscheck.run import Request as Source
from inspector.crosscheck.run import default_cache
from inspector.crosscheck.sequential import Budget
from inspector.findings import BadInput
from inspector.validate.kernels import Build, Kernel, baseline_of, place_of
from inspector.validate.matrix import SERIAL, Spread
from inspector.validate.verdict import Request, Sources


@dataclass(frozen=True)
class Asked:
    """The options of `inspector validate`."""

    kernel: str | None
    vmlinux: str
    baseline_kernel: str | None
    baseline_vmlinux: str
    tree: str | None
    package: str | None
    patches: Sequence[str]
    baseline: str | None
    page_size: str
    debug_kernel: bool
    depth: str
    seed: int
    operations: int
    keep: Path | None
    draw: bool = False
    how: Spread = SERIAL
    configurations: Sequence[str] = ()
    selftests: str | None = None
    deterministic: bool = False


def request_of(asked: Asked, tell: Callable[[str], None]) -> Request:
    """Raises `BadInput` for options that do not go together, and for a package that cannot be had."""
    if asked.tree is not None and asked.package is not None:
        raise BadInput("--tree and --source are two sources: give one")
    given = asked.tree if asked.tree is not None else asked.package
    if asked.patches and given is None:
        raise BadInput("--patch is about a tree: name it with --tree, or a package with --source")
    if asked.kernel is None and given is None:
        raise BadInput("which kernel? Give one with --kernel, or have one built from --tree or --source")
    if asked.kernel is not None and asked.baseline is not None:
        raise BadInput("--baseline is built as a tree is: beside --kernel there is --baseline-kernel")
    if asked.kernel is None and asked.vmlinux:
        raise BadInput("--vmlinux is of --kernel: a kernel that is built has its own")
    if asked.baseline is not None and asked.baseline_kernel is not None:
        raise BadInput("--baseline and --baseline-kernel are two baselines: give one")
    patches = [Path(file) for file in asked.patches]
    source, place = None, Path()
    if given is not None:
        budget = Budget(asked.operations, None, asked.seed, tuple(GRANULES), min(len(os.sched_getaffinity(0)), 8), None)
        source = Source(
            Path(asked.tree) if asked.tree is not None else None,
            default_cache(),
            budget,
            package=asked.package,
            patches=patches,
        )
    kernel: Kernel | Build
    baseline: Kernel | Build | None = None
    if asked.baseline_kernel is not None:
        baseline = Kernel(asked.baseline_kernel, asked.baseline_vmlinux)
    if asked.kernel is not None:
        kernel = Kernel(asked.kernel, asked.vmlinux)
    else:
        name = str(given)
        place = Path(name) if asked.tree is not None else place_of(name, default_cache(), tell)
        kernel = Build(place, name, patches, None, asked.page_size, asked.debug_kernel)
        if asked.baseline is not None:
            baseline = baseline_of(asked.baseline, kernel, default_cache(), tell)
        elif asked.package is not None and patches and baseline is None:
            baseline = Build(place, name, (), None, asked.page_size, asked.debug_kernel)
    selftests = _sources(asked.selftests, tell) if asked.selftests is not None else None
    if asked.deterministic and baseline is None:
        raise BadInput("--deterministic is about two kernels: give a baseline")
    return Request(
        kernel,
        baseline,
        asked.depth,
        asked.seed,
        asked.keep,
        source,
        draw=asked.draw,
        how=asked.how,
        configurations=asked.configurations,
        selftests=selftests,
        deterministic=asked.deterministic,
    )


def _sources(named: str, tell: Callable[[str], None]) -> Sources:
    """A tree, a tarball, or a package by its name.  Raises `BadInput` when there is none."""
    if Path(named).exists():
        return Sources(Path(named), named)
    if not is_package(named):
        raise BadInput(f"--selftests: {named} is neither a tree, nor a file, nor the name of a linux-source package")
    return Sources(place_of(named, default_cache(), tell), named)
