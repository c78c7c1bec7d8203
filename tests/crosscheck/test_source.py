"""Whatever a user can name as a kernel's source, on real trees in real repositories, patched by real patches."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.crosscheck.apply import Step, apply_series
from inspector.crosscheck.changed import Changed, changed, changed_lines, touched
from inspector.crosscheck.patch import read_patches
from inspector.crosscheck.source import open_baseline, open_package, open_source
from inspector.crosscheck.tree import ASM, PGTABLE, SYSREG, Tree, read_tree
from inspector.findings import BadInput, InspectorError, Untestable
from tests.crosscheck import kernels

pytestmark = pytest.mark.harness

LABEL = kernels.labels()[-1]
OTHER = "virt/kvm/kvm_main.c"
MEMORY = f"{ASM}/memory.h"


def _silent(_: str) -> None:
    pass


def _git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{part}_{what}": "a@b" for part in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    settings = ["-c", "commit.gpgsign=false", "-c", "core.autocrlf=false", "-c", "init.defaultBranch=main"]
    command = ["git", *settings, *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | who, capture_output=True, text=True, check=True)
    return done.stdout


def _write(tree: Tree, folder: Path) -> Path:
    for name, text in tree.text.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """The needed files of a real kernel, and one that is not needed, committed and tagged v1."""
    folder = _write(kernels.tree(LABEL), tmp_path / "linux")
    (folder / OTHER).parent.mkdir(parents=True)
    (folder / OTHER).write_text("".join(f"int line{n};\n" for n in range(40)))
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "first")
    _git(folder, "tag", "-a", "v1", "-m", "v1")
    return folder


def _edit(path: Path, change: Callable[[list[str]], None]) -> None:
    lines = path.read_text().split("\n")
    change(lines)
    path.write_text("\n".join(lines))


def _comment(at: int, text: str = "/* here */") -> Callable[[list[str]], None]:
    """Insert a comment as line ``at`` (from 1)."""
    return lambda lines: lines.insert(at - 1, text)


def _commit(repo: Path, subject: str, edits: dict[str, Callable[[list[str]], None]]) -> None:
    for name, change in edits.items():
        _edit(repo / name, change)
    _git(repo, "commit", "-q", "-a", "-m", subject)


def _steps(tree: Tree, *files: Path) -> list[Step]:
    return list(apply_series(tree, [patch for file in files for patch in read_patches(file)]))


def _format_patch(repo: Path, out: Path, *arguments: str) -> list[Path]:
    return [Path(line) for line in _git(repo, "format-patch", "-o", str(out), *arguments, "v1").splitlines()]


# --- trees ---


def test_a_clean_tree_is_described_as_git_does(repo: Path, tmp_path: Path) -> None:
    found = open_source(repo, tmp_path)
    assert found.tree.text == kernels.tree(LABEL).text
    assert found.description == f"Linux {kernels.tree(LABEL).release}, v1"
    assert found.head is None


def test_the_work_tree_counts_and_HEAD_is_what_it_is_held_against(repo: Path, tmp_path: Path) -> None:
    _edit(repo / PGTABLE, _comment(100))
    index = (repo / ".git/index").stat()
    found = open_source(repo, tmp_path)
    assert found.description.endswith(", v1-dirty")
    assert found.tree.text[PGTABLE] == (repo / PGTABLE).read_text()
    assert found.head is not None
    assert changed(found.head, found.tree) == [Changed(PGTABLE, (100,), ())]
    assert (repo / ".git/index").stat() == index  # looking writes nothing


def test_a_tree_that_is_dirty_elsewhere_is_called_so_and_has_no_changed_lines(repo: Path, tmp_path: Path) -> None:
    _edit(repo / OTHER, _comment(3))
    found = open_source(repo, tmp_path)
    assert found.description.endswith("-dirty")
    assert found.head is None


def test_a_tree_within_another_repository_is_none_of_its(repo: Path, tmp_path: Path) -> None:
    within = _write(kernels.tree(LABEL), repo / "scratch")
    found = open_source(within, tmp_path)
    assert found.description == f"Linux {kernels.tree(LABEL).release}"


def test_a_kernel_in_a_folder_of_a_repository_is_read_there(tmp_path: Path) -> None:
    top = tmp_path / "vendor"
    tree = _write(kernels.tree(LABEL), top / "linux")
    _git(top, "init", "-q")
    _git(top, "add", ".")
    _git(top, "commit", "-q", "-m", "x")
    _edit(tree / PGTABLE, _comment(9))
    assert open_baseline("HEAD", tree, tmp_path, _silent).tree.text == kernels.tree(LABEL).text


def test_a_shallow_clone_and_a_hook_s_surroundings(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _commit(repo, "second", {PGTABLE: _comment(5)})
    _git(tmp_path, "clone", "-q", "--depth=1", "--no-tags", f"file://{repo}", "shallow")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    description = open_source(tmp_path / "shallow", tmp_path).description
    assert re.search(r", [0-9a-f]{7,}$", description)


def test_a_repository_that_git_does_not_read_costs_the_description_alone(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found = open_source(repo, tmp_path)
    assert "dubious ownership" in found.description
    assert found.tree.text == kernels.tree(LABEL).text
    with pytest.raises(BadInput, match="dubious ownership"):
        open_baseline("v1", repo, tmp_path, _silent)


def test_without_git_a_tree_is_a_tree(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert open_source(repo, tmp_path).description == f"Linux {kernels.tree(LABEL).release}"
    with pytest.raises(BadInput, match="there is no git here: install"):
        open_baseline("v1", repo, tmp_path, _silent)


def test_lines_that_end_as_in_windows_are_lines(repo: Path, tmp_path: Path) -> None:
    for name in kernels.tree(LABEL).text:
        (repo / name).write_bytes((repo / name).read_bytes().replace(b"\n", b"\r\n"))
    assert read_tree(repo, tmp_path).text == kernels.tree(LABEL).text


def test_two_archives_of_one_name_are_two_trees(repo: Path, tmp_path: Path) -> None:
    for folder, line in (("a", "/* a */"), ("b", "/* b */")):
        (tmp_path / folder).mkdir()
        _edit(repo / PGTABLE, _comment(1, line))
        subprocess.run(["tar", "-czf", str(tmp_path / folder / "linux.tar.gz"), "linux"], cwd=tmp_path, check=True)
    one, two = (open_source(tmp_path / folder / "linux.tar.gz", tmp_path / "cache").tree for folder in ("a", "b"))
    assert one.text[PGTABLE].startswith("/* a */\n")
    assert two.text[PGTABLE].startswith("/* b */\n/* a */\n")


def test_what_is_no_tree_is_said(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere does not exist: give a kernel tree"):
        open_source(tmp_path / "nowhere", tmp_path)
    with pytest.raises(BadInput, match="is no kernel tree: give one"):
        open_source(repo / "arch", tmp_path)
    (tmp_path / "x.tar").write_bytes(b"no archive")
    with pytest.raises(BadInput, match=r"x\.tar is no kernel source: give a kernel tree"):
        open_source(tmp_path / "x.tar", tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    subprocess.run(["tar", "-cf", "e.tar", "empty"], cwd=tmp_path, check=True)
    with pytest.raises(BadInput, match=r"e\.tar is no kernel source.*Makefile"):
        open_source(tmp_path / "e.tar", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "source").iterdir())


def test_a_kernel_without_the_file_is_skipped_by_a_bisection(repo: Path, tmp_path: Path) -> None:
    release = kernels.tree(LABEL).release
    (repo / PGTABLE).unlink()
    with pytest.raises(Untestable, match=rf"Linux {re.escape(release)} has no {PGTABLE} here; .* since 5\.10"):
        open_source(repo, tmp_path)


def test_a_file_that_is_not_text_is_said(repo: Path, tmp_path: Path) -> None:
    (repo / PGTABLE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"pgtable\.c is not text"):
        open_source(repo, tmp_path)


def test_a_needless_file_may_be_missing(repo: Path, tmp_path: Path) -> None:
    (repo / SYSREG).unlink()
    assert SYSREG not in open_source(repo, tmp_path).tree.text


def test_a_hostile_makefile_names_no_release(repo: Path, tmp_path: Path) -> None:
    (repo / "Makefile").write_text('VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1"\nEXTRAVERSION = -rc2\n')
    assert open_source(repo, tmp_path).tree.release == "6.12.?-rc2"


# --- packages and baselines ---


def test_a_package_that_is_kept_is_used(tmp_path: Path) -> None:
    file = kernels.source(LABEL)
    assert file is not None
    if file.is_dir():
        pytest.skip("kernel trees were given in place of packages, so that there is none to find")
    found = open_package(f"linux-source-{LABEL}", kernels.builds(), _silent)
    assert found.tree.text == kernels.tree(LABEL).text


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's apt knows one repository, in a folder, with the source package of a kernel 9.9."""
    if shutil.which("apt-get") is None:
        pytest.skip("this distribution has no apt, which is what fetches packages by name")
    apt = tmp_path / "apt"
    for part in ("state/lists/partial", "cache/archives/partial", "empty", "deb/DEBIAN", "deb/usr/src"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    _write(kernels.tree(LABEL), apt / "linux-source-9.9")
    archive = apt / "deb/usr/src/linux-source-9.9.tar.xz"
    subprocess.run(["tar", "-cJf", str(archive), "linux-source-9.9"], cwd=apt, check=True)
    control = "Package: linux-source-9.9\nVersion: 9.9.1-1\nArchitecture: all\nMaintainer: a <a@b>\n"
    (apt / "deb/DEBIAN/control").write_text(control + "Description: x\n")
    deb = apt / "linux-source-9.9_9.9.1-1_all.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", str(apt / "deb"), str(deb)], check=True, capture_output=True)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    (apt / "Packages").write_text(f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    (apt / "list").write_text(f"deb [trusted=yes] file:{apt} ./\n")
    settings = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceList": apt / "list",
        "Dir::Etc::SourceParts": apt / "empty",
        "Dir::Etc::Main": "/dev/null",
        "Dir::Etc::Parts": apt / "empty",
        "APT::Sandbox::User": "root",
    }
    (apt / "conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    monkeypatch.setenv("APT_CONFIG", str(apt / "conf"))
    monkeypatch.delenv("INSPECTOR_KERNEL_SOURCES", raising=False)
    subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)


@pytest.mark.usefixtures("repository")
def test_a_package_is_fetched_by_apt_once(tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(2):
        found = open_package("linux-source-9.9", tmp_path / "cache", told.append)
        assert found.tree.text == kernels.tree(LABEL).text
    assert told == ["downloading linux-source-9.9: some 150 MB, once"]
    assert [each.name for each in (tmp_path / "cache/packages").iterdir()] == ["linux-source-9.9_9.9.1-1_all.deb"]


@pytest.mark.usefixtures("repository")
def test_a_package_that_apt_does_not_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"linux-source-4\.99 is not in this machine's package sources, nor in"):
        open_package("linux-source-4.99", tmp_path, _silent)
    assert not list((tmp_path / "packages").iterdir())
    (tmp_path / "apt" / "linux-source-9.9_9.9.1-1_all.deb").write_bytes(b"another")
    with pytest.raises(BadInput, match=r"linux-source-9\.9 could not be fetched \(apt: .*try again, or download"):
        open_package("linux-source-9.9", tmp_path, _silent)


def test_what_is_no_package_s_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'-o=x' is not the name of a kernel's source package"):
        open_package("-o=x", tmp_path, _silent)


def test_a_baseline_is_a_folder_or_a_file_or_a_revision(repo: Path, tmp_path: Path) -> None:
    _commit(repo, "second", {PGTABLE: _comment(7)})
    _edit(repo / PGTABLE, _comment(8))
    before = (repo / PGTABLE).read_text()
    revision = open_baseline("v1", repo, tmp_path, _silent)
    assert revision.tree.text == kernels.tree(LABEL).text
    assert _git(repo, "rev-parse", "v1^{commit}")[:12] in revision.description
    assert changed(revision.tree, open_source(repo, tmp_path).tree) == [Changed(PGTABLE, (7, 8), ())]
    assert (repo / PGTABLE).read_text() == before
    assert open_baseline(str(repo), repo, tmp_path, _silent).tree.text[PGTABLE] == before


@pytest.mark.parametrize("given", ["v2", "--output=/x", "HEAD:Makefile", "v1 v1", "", "x" * 5000, "v1\0"])
def test_a_baseline_that_is_nothing_is_said(
    repo: Path, tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"the baseline '.*' is neither a directory, nor a file, nor .* nor a revision"):
        open_baseline(given, repo, tmp_path, _silent)
    with pytest.raises(BadInput, match="only be where the source is a git tree"):
        open_baseline("v1", None, tmp_path, _silent)


def test_a_revision_before_the_file_was_there_is_skipped_by_a_bisection(repo: Path, tmp_path: Path) -> None:
    _git(repo, "rm", "-q", PGTABLE)
    _git(repo, "commit", "-q", "-m", "gone")
    with pytest.raises(Untestable, match=r"since 5\.10"):
        open_baseline("HEAD", repo, tmp_path, _silent)
    assert open_baseline("HEAD^", repo, tmp_path, _silent).tree.text == kernels.tree(LABEL).text


# --- patches ---


def test_a_series_of_mails_is_applied_one_after_the_other(repo: Path, tmp_path: Path) -> None:
    _commit(repo, "KVM: arm64: First\n\nWhy.\n---\nnot a header", {PGTABLE: _comment(20), OTHER: _comment(2)})
    _commit(repo, "KVM: arm64: Second", {PGTABLE: _comment(400), MEMORY: _comment(30)})
    _commit(repo, "KVM: Elsewhere", {OTHER: _comment(9)})
    files = _format_patch(repo, tmp_path / "out", "--cover-letter")
    assert len(files) == 4
    box = tmp_path / "series.mbx"
    box.write_text(_git(repo, "format-patch", "--stdout", "v1"))
    base = kernels.tree(LABEL)
    for steps in (_steps(base, *files[1:]), _steps(base, box)):
        assert [step.name for step in steps] == ["KVM: arm64: First", "KVM: arm64: Second", "KVM: Elsewhere"]
        assert [step.here for step in steps] == [(PGTABLE,), (MEMORY, PGTABLE), ()]
        assert [step.elsewhere for step in steps] == [(OTHER,), (), (OTHER,)]
        assert steps[2].tree.text == read_tree(repo, tmp_path).text
        assert changed(base, steps[0].tree) == [Changed(PGTABLE, (20,), ())]
        assert changed(steps[0].tree, steps[1].tree) == [Changed(PGTABLE, (400,), ())]
        assert steps[1].tree.origin.endswith("with KVM: arm64: First with KVM: arm64: Second")
    with pytest.raises(BadInput, match=r"cover-letter\.patch holds no patch"):
        read_patches(files[0])


def test_a_plain_diff_is_called_as_its_file(repo: Path, tmp_path: Path) -> None:
    def change(lines: list[str]) -> None:
        del lines[99:102]
        lines[199] = "/* other */"

    _edit(repo / PGTABLE, change)
    wanted = (repo / PGTABLE).read_text()
    forms = {
        "git.diff": ["diff"],
        "show.diff": ["diff", "--no-prefix"],
        "zero.diff": ["diff", "-U0"],
        "mnemonic.diff": ["-c", "diff.mnemonicPrefix=true", "diff"],
        "minimal.diff": ["diff", "--patience", "--full-index", "--src-prefix=old/", "--dst-prefix=new/"],
    }
    for name, command in forms.items():
        (tmp_path / name).write_text("Some words first.\n\n" + _git(repo, *command))
        (step,) = _steps(kernels.tree(LABEL), tmp_path / name)
        assert (step.name, step.fuzzy) == (name, False)
        assert step.tree.text[PGTABLE] == wanted, name
    (found,) = changed(kernels.tree(LABEL), step.tree)
    assert found == Changed(PGTABLE, (200,), (99,))


def test_diff_u_of_two_folders_applies(repo: Path, tmp_path: Path) -> None:
    shutil.copytree(repo, tmp_path / "linux.orig", ignore=shutil.ignore_patterns(".git"))
    _edit(repo / PGTABLE, _comment(50))
    _edit(repo / OTHER, lambda lines: lines.__setitem__(4, "-- a/arch/arm64/kvm/hyp/pgtable.c"))
    _edit(tmp_path / "linux.orig" / OTHER, lambda lines: lines.__setitem__(5, "-- x"))
    made = subprocess.run(
        ["diff", "-urN", "-x", ".git", "linux.orig", "linux"], cwd=tmp_path, capture_output=True, check=False
    )
    (tmp_path / "p.diff").write_bytes(made.stdout)
    (step,) = _steps(kernels.tree(LABEL), tmp_path / "p.diff")
    assert (step.here, step.elsewhere) == ((PGTABLE,), (OTHER,))
    assert step.tree.text[PGTABLE] == (repo / PGTABLE).read_text()


def test_mails_as_they_arrive(repo: Path, tmp_path: Path) -> None:
    _commit(repo, "Ümlaut: a \x1b[31msubject\u202e", {PGTABLE: _comment(20, "/* é */")})
    (file,) = _format_patch(repo, tmp_path / "out")
    wanted = (repo / PGTABLE).read_text()
    head, _, body = file.read_text().partition("\n\n")
    head = re.sub(r"\nContent-Transfer-Encoding:.*", "", head)
    coded = f"{head}\nContent-Transfer-Encoding: base64\n\n{base64.encodebytes(body.encode()).decode()}"
    forms = {
        "crlf": file.read_bytes().replace(b"\n", b"\r\n"),
        "base64": coded.encode(),
        "unframed": file.read_bytes().split(b"\n", 1)[1],
    }
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
        (step,) = _steps(kernels.tree(LABEL), tmp_path / name)
        assert step.tree.text[PGTABLE] == wanted, name
        assert step.name.isprintable(), name
        assert step.name.startswith("Ümlaut: a "), name


def test_a_patch_made_for_lines_further_down_or_other_context_applies(repo: Path, tmp_path: Path) -> None:
    _edit(repo / PGTABLE, _comment(300))
    (tmp_path / "p.diff").write_text(_git(repo, "diff"))
    base = kernels.tree(LABEL)
    lines = base.text[PGTABLE].split("\n")
    for edits, fuzzy in (([(1, "/* a */")] * 30, False), ([(302, "/* b */")], True)):
        new = list(lines)
        for at, text in edits:
            new.insert(at - 1, text)
        (step,) = _steps(Tree("moved", {**base.text, PGTABLE: "\n".join(new)}), tmp_path / "p.diff")
        assert step.fuzzy is fuzzy
        assert changed(Tree("x", {**base.text, PGTABLE: "\n".join(new)}), step.tree)[0].added == (
            (300,) if fuzzy else (330,)
        )


def test_a_patch_that_does_not_apply_is_named_with_its_hunk_and_line(repo: Path, tmp_path: Path) -> None:
    _edit(repo / PGTABLE, _comment(200, "\tint \x1b[2Jnot_there;"))
    _git(repo, "commit", "-q", "-a", "-m", "x")
    _edit(repo / PGTABLE, _comment(100))
    _edit(repo / PGTABLE, lambda lines: lines.__delitem__(200))
    (tmp_path / "p.diff").write_text(_git(repo, "diff"))
    pattern = (
        rf"the patch 'p\.diff' \(.*p\.diff\) does not apply to .*: hunk 2 of {PGTABLE} \(line 197\) finds no line "
        r"'int \\x1b\[2Jnot_there;' about line 200; give the tree"
    )
    with pytest.raises(BadInput, match=pattern):
        _steps(kernels.tree(LABEL), tmp_path / "p.diff")
    with pytest.raises(BadInput, match="does not apply"):
        _steps(open_source(repo, tmp_path).tree, tmp_path / "p.diff")  # it is there already


def test_what_a_patch_does_elsewhere_is_no_matter(repo: Path, tmp_path: Path) -> None:
    (repo / "blob").write_bytes(bytes(range(256)) * 20)
    _git(repo, "mv", OTHER, "virt/kvm/other name.c")
    (repo / "new.c").write_text("int x;\n")
    _git(repo, "add", ".")
    _commit(repo, "much", {PGTABLE: _comment(70)})
    (repo / "new.c").chmod(0o755)
    _git(repo, "commit", "-q", "-a", "-m", "mode")
    for options in ([], ["--binary"], ["--no-renames"], ["--full-index"]):
        (tmp_path / "p.mbx").write_text(_git(repo, "format-patch", "--stdout", *options, "v1"))
        steps = _steps(kernels.tree(LABEL), tmp_path / "p.mbx")
        assert steps[0].here == (PGTABLE,)
        assert set(steps[0].elsewhere) >= {"blob", "new.c", OTHER, "virt/kvm/other name.c"}
        assert steps[1].elsewhere == ("new.c",)
        assert steps[1].tree.text[PGTABLE] == (repo / PGTABLE).read_text()


@pytest.mark.parametrize("move", [True, False])
def test_a_patch_that_takes_the_file_away_cannot_be_tested(repo: Path, tmp_path: Path, move: bool) -> None:
    if move:
        _git(repo, "mv", PGTABLE, "arch/arm64/kvm/hyp/walk.c")
    else:
        _git(repo, "rm", "-q", PGTABLE)
    _git(repo, "commit", "-q", "-m", "away")
    (tmp_path / "p.mbx").write_text(_git(repo, "format-patch", "-M", "--stdout", "v1"))
    does = "moves .*pgtable.c to arch/arm64/kvm/hyp/walk.c" if move else r"deletes .*pgtable\.c"
    with pytest.raises(Untestable, match=f"the patch 'away' {does}"):
        _steps(kernels.tree(LABEL), tmp_path / "p.mbx")


def test_what_is_no_patch_is_said(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("From me to you: no diff\n\nhello\n")
    (tmp_path / "bytes").write_bytes(os.urandom(3000))
    (tmp_path / "empty").touch()
    for name in ("text", "bytes", "empty"):
        with pytest.raises(InspectorError, match="holds no patch"):
            read_patches(tmp_path / name)
    with pytest.raises(BadInput, match="is a folder"):
        read_patches(tmp_path)
    with pytest.raises(BadInput, match="does not exist"):
        read_patches(tmp_path / "nowhere")
    _edit(repo / PGTABLE, _comment(70))
    (tmp_path / "cut.diff").write_text(_git(repo, "diff")[:-40])
    with pytest.raises(BadInput, match=r"the patch 'cut\.diff' .* does not apply"):
        _steps(kernels.tree(LABEL), tmp_path / "cut.diff")


# --- changed lines ---


def test_changed_lines_are_numbers_of_the_new_file() -> None:
    assert changed_lines("f", "a\nb\nc\n", "a\nb\nc\n") == Changed("f", (), ())
    assert changed_lines("f", "a\nb\nc\n", "b\nX\nY\nc\n") == Changed("f", (2, 3), (0,))
    assert changed_lines("f", "a\nb\nc\nd\n", "a\nB\n") == Changed("f", (2,), ())
    assert changed_lines("f", "a\nb\n", "a\n") == Changed("f", (), (1,))


def test_a_header_counts_by_the_macros_that_are_read_out_of_it(repo: Path, tmp_path: Path) -> None:
    base = kernels.tree(LABEL)
    assert touched(base, base) == []
    _edit(repo / MEMORY, _comment(30, "#define UNRELATED 1"))
    assert touched(base, read_tree(repo, tmp_path)) == []
    _edit(repo / MEMORY, _comment(30, "#define MT_S2_UNKNOWN 1"))
    _edit(repo / "Makefile", _comment(3, "# x"))
    _edit(repo / PGTABLE, _comment(30))
    assert sorted(touched(base, read_tree(repo, tmp_path))) == sorted([MEMORY, PGTABLE])
