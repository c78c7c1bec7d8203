"""Whatever a user can name as a kernel's source, as a `Tree`: a directory, an archive, a package, a revision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inspector.crosscheck.git import Checkout, GitFailed, checkout, commit_of, git, read_revision
from inspector.crosscheck.package import fetch_package, is_package
from inspector.crosscheck.tree import Tree, exists, read_tree
from inspector.findings import BadInput, Untestable
from inspector.printable import SHORT, printable

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A kernel's source as it was named.

    ``name`` is that name; ``description`` says what it is (``Linux 6.12.117, v6.12-3-g0123456789ab-dirty``).  ``head``
    is given when the needed files of a git work tree are not those of its HEAD: what its changed lines are counted
    against where there is no other baseline.
    """

    name: str
    tree: Tree
    description: str
    head: Tree | None = None


def open_source(path: Path, cache: Path) -> Source:
    """A kernel tree, its tarball, or a ``linux-source`` package's file.

    Raises `BadInput` when it is none, and `Untestable` when it is a kernel without KVM/arm64's page-table code.
    """
    tree = read_tree(path, cache)
    name = printable(str(path))
    if not path.is_dir():
        return Source(name, tree, f"Linux {tree.release}")
    try:
        known = checkout(path)
    except GitFailed as error:
        why = f" ({error})" if "dubious ownership" in str(error) else ""
        return Source(name, tree, f"Linux {tree.release}{why}")
    return Source(name, tree, f"Linux {tree.release}, {known}", _head(path, tree, known))


def _head(path: Path, tree: Tree, known: Checkout) -> Tree | None:
    if known.dirty is False:
        return None
    try:
        head = read_revision(path, git(path, "rev-parse", "HEAD").decode().strip(), f"{tree.origin} at HEAD")
    except (GitFailed, BadInput, Untestable):
        return None
    return head if head.text != tree.text else None


def open_package(name: str, cache: Path, tell: Tell) -> Source:
    """Debian's package of that name (``linux-source-6.12``).  Raises `BadInput` when it cannot be had."""
    file = fetch_package(name, cache, tell)
    tree = read_tree(file, cache)
    return Source(name, tree, f"Linux {tree.release}, Debian's {name}")


def open_baseline(given: str, beside: Path | None, cache: Path, tell: Tell) -> Source:
    """What ``--baseline`` names: a directory, a file, a source package, or a revision of the git tree ``beside`` it
    (``None``: the source is no directory), decided in this order.

    Raises `BadInput` when it is none of them.
    """
    if given and exists(Path(given)):
        return open_source(Path(given), cache)
    if is_package(given):
        return open_package(given, cache, tell)
    shown = printable(given, SHORT)
    if beside is None or not beside.is_dir():
        raise BadInput(
            f"the baseline '{shown}' is neither a directory, nor a file, nor a linux-source package; a git revision it "
            "can only be where the source is a git tree"
        )
    try:
        commit = commit_of(beside, given)
    except GitFailed as error:
        raise BadInput(
            f"the baseline '{shown}' is neither a directory, nor a file, nor a linux-source package, and git does not "
            f"read {beside}: {error}"
        ) from None
    if commit is None:
        raise BadInput(
            f"the baseline '{shown}' is neither a directory, nor a file, nor a linux-source package, nor a revision "
            f"that git knows in {beside}: fetch it there, or name another"
        )
    tree = read_revision(beside, commit, f"{beside} at {shown}")
    return Source(shown, tree, f"Linux {tree.release}, {commit[:12]} of {printable(str(beside))}")
