"""The kernel sources that the tests run on: what ``run_qemu.sh test`` fetched, by release series."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from fixtures.kernels import COMPILED
from inspector.crosscheck.harness import Harness
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.tree import Tree, read_tree

SOURCES = "INSPECTOR_KERNEL_SOURCES"
"""The folder with ``linux-source-X.Y_VERSION_all.deb`` or trees ``X.Y/``."""

BUILDS = "INSPECTOR_HARNESS_BUILD"


def source(label: str) -> Path | None:
    """Where the source of that series is; what else lies in the folder is none of the tests' business."""
    folder = Path(os.environ.get(SOURCES, "/nonexistent"))
    found = sorted(folder.glob(f"linux-source-{label}_*.deb")) if folder.is_dir() else []
    return folder / label if (folder / label).is_dir() else found[-1] if found else None


def labels() -> list[str]:
    """Every series of `COMPILED` whose source is there; where none is, the tests are to fail and not to vanish."""
    return [label for label in COMPILED if source(label)] or ["6.12"]


@cache
def builds() -> Path:
    """Where libraries are kept: by content, so that one folder serves every run."""
    if given := os.environ.get(BUILDS):
        return Path(given)
    folder = tempfile.mkdtemp(prefix="crosscheck-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def tree(label: str) -> Tree:
    found = source(label)
    assert found, f"no source of {label} in ${SOURCES}: run ./run_qemu.sh test"
    return read_tree(found, builds())


@cache
def kernel(label: str) -> Kernel:
    """The kernel of a series whose generation the model knows by the same name."""
    return Kernel(label, tree(label), label, builds())


def harness(label: str, granule: str = "4k", **settings: int) -> Harness:
    """One table in the code of that series."""
    return Harness(kernel(label).library(granule), **settings)  # type: ignore[arg-type]
