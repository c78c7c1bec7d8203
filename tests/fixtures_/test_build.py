"""What a kernel is built from: sources brought up to date, patches put on them, and make's own words where it fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fixtures.build.files import Files, Folder, revision
from fixtures.build.kernel import Wanted, build
from fixtures.build.make import Make, Variant
from fixtures.build.mirror import bring_up_to_date, load, save
from fixtures.build.patches import patched
from fixtures.kernels.problems import NotAKernel, NotAvailable

DIFF = """\
--- a/mm/a.c
+++ b/mm/a.c
@@ -1,2 +1,2 @@
 int one;
-int two;
+int three;
"""
NEW = """\
diff --git a/mm/c.c b/mm/c.c
new file mode 100644
--- /dev/null
+++ b/mm/c.c
@@ -0,0 +1 @@
+int four;
diff --git a/mm/run.sh b/mm/run.sh
deleted file mode 100755
--- a/mm/run.sh
+++ /dev/null
@@ -1 +0,0 @@
-exit
"""
MAIL = """\
From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001
From: Somebody <somebody@example.org>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] One more
Content-Type: text/plain; charset=UTF-8
Content-Transfer-Encoding: quoted-printable

Why=3F

---
"""


def git(tree: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=tree, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree in git, built in, and dirty."""
    root = tmp_path / "linux"
    (root / "mm").mkdir(parents=True)
    (root / "Makefile").write_text("VERSION = 6\n")
    (root / ".gitignore").write_text("*.o\n/include/config/\n")
    (root / "mm/a.c").write_text("int one;\nint two;\n")
    (root / "mm/run.sh").write_text("exit\n")
    (root / "mm/run.sh").chmod(0o755)
    (root / "mm/link").symlink_to("a.c")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    (root / "mm/a.o").write_text("built")
    (root / "include/config").mkdir(parents=True)
    (root / "include/config/auto.conf").write_text("built")
    return root


def folder(root: Path, tmp_path: Path) -> Folder:
    return Folder(root, tmp_path / "scratch.git", {})


def sync(source: Files, tmp_path: Path) -> int:
    return bring_up_to_date(tmp_path / "mirror", tmp_path / "mirror.json", source)


def contents(mirror: Path) -> dict[str, str]:
    return {str(p.relative_to(mirror)): p.read_text() for p in mirror.rglob("*") if p.is_file() and not p.is_symlink()}


@pytest.mark.parametrize("known", [True, False], ids=["git", "no git"])
def test_a_tree_that_was_built_in_is_taken_without_what_was_built(tree: Path, tmp_path: Path, known: bool) -> None:
    """With what its owner has changed and added; nothing is written to it."""
    if not known:
        subprocess.run(["rm", "-r", tree / ".git"], check=True)
    (tree / "mm/a.c").write_text("int changed;\n")
    (tree / "mm/new.c").write_text("int new;\n")
    before = {path: path.lstat().st_mtime_ns for path in tree.rglob("*")}
    sync(folder(tree, tmp_path), tmp_path)
    mirror = tmp_path / "mirror"
    assert set(contents(mirror)) == {".gitignore", "Makefile", "mm/a.c", "mm/new.c", "mm/run.sh"}
    assert (mirror / "mm/a.c").read_text() == "int changed;\n"
    assert os.access(mirror / "mm/run.sh", os.X_OK)
    assert (mirror / "mm/link").readlink() == Path("a.c")
    assert {path: path.lstat().st_mtime_ns for path in tree.rglob("*")} == before


def test_of_debians_tree_what_a_build_leaves_is_no_part_either(tree: Path, tmp_path: Path) -> None:
    """Its .gitignore says that everything is ignored."""
    subprocess.run(["rm", "-r", tree / ".git"], check=True)
    (tree / ".gitignore").write_text("/*\n!/debian/\n")
    sync(folder(tree, tmp_path), tmp_path)
    assert set(contents(tmp_path / "mirror")) == {"Makefile", "mm/a.c", "mm/run.sh"}


def test_only_what_differs_is_written_and_older_contents_are_new(tree: Path, tmp_path: Path) -> None:
    """make goes by times: a file that comes back must be newer than what was made of the one in between."""
    source = folder(tree, tmp_path)
    assert sync(source, tmp_path) == 5
    made = tmp_path / "mirror/mm/a.c"
    first = made.stat().st_mtime_ns
    patch = tmp_path / "one.patch"
    patch.write_text(DIFF)
    untouched = (tmp_path / "mirror/Makefile").stat().st_mtime_ns
    assert sync(patched(source, [patch]), tmp_path) == 1
    assert made.read_text() == "int one;\nint three;\n"
    second = made.stat().st_mtime_ns
    assert sync(folder(tree, tmp_path), tmp_path) == 1
    assert made.read_text() == "int one;\nint two;\n"
    assert first < second < made.stat().st_mtime_ns
    assert (tmp_path / "mirror/Makefile").stat().st_mtime_ns == untouched
    assert sync(folder(tree, tmp_path), tmp_path) == 0


def test_what_was_cut_short_is_done_again(tree: Path, tmp_path: Path) -> None:
    """A record that says of a file only that it was being written."""
    sync(folder(tree, tmp_path), tmp_path)
    record = load(tmp_path / "mirror.json")
    save(tmp_path / "mirror.json", record | {"mm/a.c": ["", ""], "mm/half.c": ["", ""]})
    (tmp_path / "mirror/mm/a.c").write_text("int on")
    (tmp_path / "mirror/mm/half.c").write_text("int")
    sync(folder(tree, tmp_path), tmp_path)
    assert (tmp_path / "mirror/mm/a.c").read_text() == "int one;\nint two;\n"
    assert not (tmp_path / "mirror/mm/half.c").exists()


def test_a_revision_is_what_was_committed(tree: Path, tmp_path: Path) -> None:
    source = folder(tree, tmp_path)
    committed = source.entries()
    (tree / "mm/a.c").write_text("int dirty;\n")
    old = revision(tree, "HEAD")
    assert old.entries() == committed
    sync(folder(tree, tmp_path), tmp_path)
    assert sync(old, tmp_path) == 1
    assert (tmp_path / "mirror/mm/a.c").read_text() == "int one;\nint two;\n"
    with pytest.raises(NotAKernel, match="knows no revision 'v9'"):
        revision(tree, "v9")


def test_mails_new_files_and_deleted_ones(tree: Path, tmp_path: Path) -> None:
    box = tmp_path / "series.mbox"
    box.write_text(MAIL + DIFF + "\n" + MAIL + NEW)
    sync(patched(folder(tree, tmp_path), [box]), tmp_path)
    found = contents(tmp_path / "mirror")
    assert found["mm/a.c"] == "int one;\nint three;\n"
    assert found["mm/c.c"] == "int four;\n"
    assert "mm/run.sh" not in found


def test_a_patch_of_another_tree(tree: Path, tmp_path: Path) -> None:
    patch = tmp_path / "other.patch"
    patch.write_text(DIFF.replace("two", "twenty"))
    with pytest.raises(NotAvailable, match=r"other\.patch does not apply: git: patch failed: mm/a\.c:1"):
        patched(folder(tree, tmp_path), [patch])


def test_what_is_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(NotAKernel, match="does not exist"):
        build(tmp_path, Wanted(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAKernel, match="no kernel tree"):
        build(tmp_path, Wanted(tmp_path / "empty"))
    (tmp_path / "some.tar.xz").write_bytes(b"no archive")
    with pytest.raises(NotAKernel, match="no kernel source"):
        build(tmp_path, Wanted(tmp_path / "some.tar.xz"))


@pytest.mark.processes
def test_the_compilers_first_errors_are_told(tmp_path: Path) -> None:
    """Of a tree whose make is real and whose code is not; make's own words come after the compiler's."""
    (tmp_path / "bad.c").write_text("int f(void) { return missing + gone; }\n")
    (tmp_path / "Makefile").write_text(
        "allnoconfig:\n\tgrep -v KVM $(KCONFIG_ALLCONFIG) > $(O)/.config\n"
        "Image vmlinux: bad.o\nbad.o: bad.c\n\t$(CC) -c $< -o $(O)/bad.o\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    make = Make(tmp_path, out, tmp_path / "ccache", 1)
    with pytest.raises(NotAvailable, match="does not give KVM"):
        make.configure(Variant())
    with pytest.raises(NotAvailable) as failed:
        make.compile()
    first, *more = str(failed.value).splitlines()
    assert first.startswith("compiling failed: bad.c:1:")
    assert "error: 'missing' undeclared" in first
    assert "'gone' undeclared" in more[0]
    assert not any("***" in line for line in more)
