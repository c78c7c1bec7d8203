"""``inspector crosscheck`` as its users run it: the real program on real trees, its verdict, its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.crosscheck.tree import PGTABLE
from tests.crosscheck import kernels
from tests.crosscheck.faults.patch import Patch
from tests.crosscheck.test_campaign import PATCHES

pytestmark = pytest.mark.harness

LABEL = "6.12"
ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--ops", "400", "--granule", "4k", "--no-interleave", "--no-coverage")


def inspector(
    folder: Path, *arguments: str | Path, code: int | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder; with ``code``, it must end with that."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "INSPECTOR_HARNESS_BUILD": str(kernels.builds())} | (env or {})
    done = subprocess.run(
        [sys.executable, "-m", "inspector", "crosscheck", *map(str, arguments)],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done


def write(folder: Path, change: Callable[[str], str] = lambda text: text) -> Path:
    """A tree with the files of the true kernel, and ``change`` made to its pgtable.c."""
    for name, text in kernels.tree(LABEL).text.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(change(text) if name == PGTABLE else text)
    return folder


def patch(name: str) -> Patch:
    """One of the faults that the campaign's tests write into a kernel."""
    return next(wrong.patch for wrong in PATCHES if wrong.name == name)


def events_patch() -> Patch:
    """A fault that shows in the first operation."""
    return patch("a put without its get")


def columns(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_a_true_kernel_is_clean(tmp_path: Path) -> None:
    """What was built is said, and what was compared."""
    write(tmp_path / "linux")
    said = inspector(tmp_path, "linux", *QUICK, code=0).stdout
    assert re.search(r"^linux: Linux 6\.12\.\d+", said, re.MULTILINE)
    assert "model: 6.12" in said
    assert "built: 4k" in said
    assert "stage2" not in said.split("calls:")[1].split("built:")[0]
    assert re.search(r"^CLEAN  model against kernel: [\d,]+ operations, [\d,]+ events, seed 1:\s+no", said, re.M)
    assert columns(said) <= 75
    assert not (tmp_path / "crosscheck-repro.txt").exists()


def test_the_whole_verdict_on_a_rename(tmp_path: Path) -> None:
    """A static function renamed: nothing differs, every order was tried, and every changed line ran."""
    write(tmp_path / "good")
    write(tmp_path / "same", lambda text: text.replace("stage2_unmap_put_pte", "stage2_drop_pte"))
    said = inspector(tmp_path, "same", "--baseline", "good", "--granule", "4k", "--ops", "2000", code=0).stdout
    assert len(re.findall(r"^CLEAN  ", said, re.MULTILINE)) == 5, said
    assert re.search(r"that\s+was\s+all\s+of\s+them", said)
    assert re.search(r"of\s+\d+\s+changed\s+lines:\s+\d+\s+run$", said, re.MULTILINE), said
    assert columns(said) <= 75


GET = "\tif (stage2_pte_is_counted(new))\n\t\tmm_ops->get_page(ctx->ptep);\n\n"
SPLIT_OLD = GET + "\tsmp_store_release(ctx->ptep, new);\n"
SPLIT_NEW = "\tstage2_hold_pte(ctx, new);\n\tsmp_store_release(ctx->ptep, new);\n"
HELPER = """static void stage2_hold_pte(const struct kvm_pgtable_visit_ctx *ctx, kvm_pte_t new)
{
	if (stage2_pte_is_counted(new))
		ctx->mm_ops->get_page(ctx->ptep);
}

static void stage2_make_pte("""


def _helper_split(text: str) -> str:
    """A helper taken out of stage2_make_pte."""
    for old, new in ((SPLIT_OLD, SPLIT_NEW), ("static void stage2_make_pte(", HELPER)):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text.replace(
        "	struct kvm_pgtable_mm_ops *mm_ops = ctx->mm_ops;\n\n	WARN_ON(!stage2_pte_is_locked", WARN
    )


WARN = "	WARN_ON(!stage2_pte_is_locked"


def _comment_only(text: str) -> str:
    return text.replace("/* Perform CMOs before installation", "/* Perform cache maintenance before installation")


@pytest.mark.parametrize("change", [_helper_split, _comment_only])
def test_what_changes_nothing_is_clean(tmp_path: Path, change: Callable[[str], str]) -> None:
    """Every part is clean, under sanitizers too, and no changed line is left uncovered."""
    good, same = write(tmp_path / "good"), write(tmp_path / "same", change)
    assert (good / PGTABLE).read_text() != (same / PGTABLE).read_text()
    said = inspector(
        tmp_path, same, "--baseline", good, "--granule", "4k", "--ops", "2000", "--sanitize", code=0
    ).stdout
    assert len(re.findall(r"^CLEAN  ", said, re.MULTILINE)) == 6, said
    assert "not run" not in said


def test_a_difference_is_shown_and_can_be_replayed(tmp_path: Path) -> None:
    """Script, events of both sides, tables, the kernel's line; and a file that shows it again, in 75 columns."""
    bad = write(tmp_path / "bad", events_patch().apply)
    said = inspector(tmp_path, "bad", "--granule", "4k", code=1).stdout
    assert columns(said) <= 75
    place = re.search(r"kernel: pgtable\.c:(\d+) (\w+)", said)
    assert place is not None
    line = (bad / PGTABLE).read_text().splitlines()[int(place[1]) - 1].strip()
    assert line in said
    assert place[2] == "stage2_make_pte"
    assert re.search(r"^  > - get P0$", said, re.MULTILINE) or re.search(r"^  > get P0", said, re.MULTILINE)
    assert "Table before:" in said
    assert "Table after, kernel:" in said
    file = tmp_path / "crosscheck-repro.txt"
    assert columns(file.read_text()) <= 75
    assert len(file.read_text()) < 4000
    assert "still" in inspector(tmp_path, "bad", "--replay", file, code=1).stdout
    inspector(tmp_path, write(tmp_path / "good"), "--replay", file, code=0)


def test_json_has_the_same(tmp_path: Path) -> None:
    write(tmp_path / "bad", events_patch().apply)
    found = json.loads(inspector(tmp_path, "bad", "--json", "--granule", "4k", code=1).stdout)
    assert found["verdict"] == "findings"
    assert found["parts"][0]["script"] == [
        line for line in (tmp_path / "crosscheck-repro.txt").read_text().splitlines() if not line.startswith("#")
    ]


def test_no_functional_change_is_tested(tmp_path: Path) -> None:
    """A patch that changes nothing is clean against its baseline; a fault shows in both columns, and as the baseline's
    own where the baseline has it as well."""
    write(tmp_path / "good")
    write(tmp_path / "bad", events_patch().apply)
    write(tmp_path / "same", lambda text: text.replace("childp", "child_table"))
    said = inspector(tmp_path, "same", "--baseline", "good", *QUICK, code=0).stdout
    assert re.search(r"^CLEAN  baseline against patched: ", said, re.MULTILINE)
    said = inspector(tmp_path, "bad", "--baseline", "good", *QUICK, code=1).stdout
    assert re.search(r"^FINDINGS  baseline against patched: ", said, re.MULTILINE)
    assert re.search(r"baseline: pgtable\.c:\d+ stage2_make_pte\n\s+mm_ops->get_page\(ctx->ptep\);", said)
    assert "patched: pgtable.c" in said
    assert columns(said) <= 75
    again = tmp_path / "crosscheck-repro-2.txt"
    inspector(tmp_path, "bad", "--replay", again, code=2)
    inspector(tmp_path, "bad", "--baseline", "good", "--replay", again, code=1)
    inspector(tmp_path, "same", "--baseline", "good", "--replay", again, code=0)


# --- git bisect ---


def git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{part}_{what}": "a@b" for part in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    plain = ["git", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main", *arguments]
    environment = os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(plain, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_git_bisect_finds_the_commit(tmp_path: Path) -> None:
    """Five commits, the third with a fault, the fourth one that does not compile: bisect names the third."""
    tree = tmp_path / "linux"
    write(tree)
    git(tree, "init", "-q")
    file = tree / PGTABLE
    commits = []
    for subject, change in (
        ("one", lambda text: text.replace("childp", "child")),
        ("two", lambda text: text + "\n/* a comment */\n"),
        ("three", events_patch().apply),
        ("four", lambda text: text + "\nint broken(void) { return undeclared; }\n"),
        ("five", lambda text: text.replace("\nint broken(void) { return undeclared; }\n", "")),
    ):
        file.write_text(change(file.read_text()))
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", subject)
        commits.append(git(tree, "rev-parse", "HEAD").strip())
    git(tree, "bisect", "start", commits[4], commits[0])
    script = tmp_path / "judge"
    program = f'exec "{sys.executable}" -m inspector crosscheck . {" ".join(QUICK)} --reproducer {tmp_path / "repro"}'
    script.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{ROOT}" INSPECTOR_HARNESS_BUILD="{kernels.builds()}"\n{program}\n'
    )
    script.chmod(0o755)
    said = git(tree, "bisect", "run", str(script))
    assert f"{commits[2]} is the first bad commit" in said
    assert git(tree, "status", "--porcelain") == ""


# --- KTAP ---

TEST_LINE = re.compile(r"(ok|not ok) (\d+)( [^#]+)?( # (SKIP|TODO|XFAIL|TIMEOUT|ERROR)( .*)?)?")


def read_ktap(text: str) -> list[tuple[str, str, str | None]]:
    """Result, name and directive of each test, by the grammar of ktap.rst, version 1; anything else is an error."""
    lines = text.splitlines()
    assert lines[0] == "KTAP version 1"
    body = [line for line in lines[1:] if not (line == "#" or line.startswith("# "))]
    plan = re.fullmatch(r"1\.\.(\d+)", body[0])
    assert plan is not None, body[0]
    tests = []
    for number, line in enumerate(body[1:], 1):
        found = TEST_LINE.fullmatch(line)
        assert found is not None, line
        assert int(found[2]) == number
        tests.append((found[1], (found[3] or "").strip(), found[5]))
    assert len(tests) == int(plan[1])
    return tests


def test_ktap_can_be_read(tmp_path: Path) -> None:
    """A test a part; what was found is in the diagnostics."""
    write(tmp_path / "good")
    bad = write(tmp_path / "bad", events_patch().apply)
    said = inspector(tmp_path, bad, "--baseline", "good", "--ktap", *QUICK, code=1).stdout
    assert read_ktap(said) == [
        ("not ok", "model against kernel", None),
        ("not ok", "protocol", None),
        ("not ok", "baseline against patched", None),
    ]
    assert "# Script:" in said
    assert "Table before:" in said
    assert read_ktap(inspector(tmp_path, "good", "--ktap", *QUICK, code=0).stdout)[0][0] == "ok"


# --- what a user gets wrong ---


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error, and nothing else anywhere."""
    assert done.stdout == ""
    assert done.stderr.startswith("inspector: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_no_kernel_tree(tmp_path: Path) -> None:
    assert "no kernel tree" in sentence(inspector(tmp_path, ".", code=2))
    assert "does not exist" in sentence(inspector(tmp_path, "nowhere", code=2))
    assert "name a kernel tree" in sentence(inspector(tmp_path, code=2))


def test_a_tree_without_kvm_is_skipped(tmp_path: Path) -> None:
    tree = write(tmp_path / "linux")
    (tree / PGTABLE).unlink()
    assert "pgtable.c" in sentence(inspector(tmp_path, tree, code=125))


def test_a_file_that_does_not_compile_shows_the_first_error(tmp_path: Path) -> None:
    tree = write(tmp_path / "linux", lambda text: text + "\nint broken(void) { return undeclared_thing; }\n")
    said = sentence(inspector(tmp_path, tree, code=125))
    assert re.search(r"pgtable\.c:\d+:\d+: error: .undeclared_thing. undeclared", said)


def test_no_compiler(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    tree = write(tmp_path / "linux")
    assert "gcc" in sentence(inspector(tmp_path, tree, code=125, env={"PATH": str(tmp_path / "bin")}))


def test_a_patch_that_does_not_apply(tmp_path: Path) -> None:
    write(tmp_path / "linux")
    lines = [f"--- a/{PGTABLE}", f"+++ b/{PGTABLE}", "@@ -1,2 +1,2 @@", " this is not there", "-nor this", "+new", ""]
    (tmp_path / "0001-foo.patch").write_text("\n".join(lines))
    assert "does not apply" in sentence(inspector(tmp_path, "linux", "--patch", "0001-foo.patch", code=2))


def test_a_patch_to_something_else_is_not_judged(tmp_path: Path) -> None:
    write(tmp_path / "linux")
    other = "virt/kvm/kvm_main.c"
    lines = [f"--- a/{other}", f"+++ b/{other}", "@@ -1,1 +1,1 @@", "-a", "+b", ""]
    (tmp_path / "0001-foo.patch").write_text("\n".join(lines))
    said = inspector(tmp_path, "linux", "--patch", "0001-foo.patch", *QUICK, code=125).stdout
    said = " ".join(said.split())
    assert f"NOT TESTED patch: nothing that is compiled here is changed (it is about {other})" in said


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    tree = write(tmp_path / "linux")
    (tmp_path / "file").write_text("")
    said = sentence(inspector(tmp_path, tree, code=2, env={"INSPECTOR_HARNESS_BUILD": str(tmp_path / "file" / "x")}))
    assert "INSPECTOR_HARNESS_BUILD" in said


@pytest.mark.parametrize("text", ["", "init\n", "machine generation=6.12\nwhat 1 2\n", "# part: dreams\n", "\x00\xff"])
def test_a_reproducer_that_is_none(tmp_path: Path, text: str) -> None:
    write(tmp_path / "linux")
    (tmp_path / "repro").write_bytes(text.encode("latin-1"))
    assert "repro" in sentence(inspector(tmp_path, "linux", "--replay", "repro", code=2))


@pytest.mark.parametrize("name", ["a walk begun again for ever", "a loop without any access"])
def test_a_walk_that_does_not_end_is_a_finding(tmp_path: Path, name: str) -> None:
    """With its script and its place."""
    write(tmp_path / "linux", patch(name).apply)
    said = inspector(tmp_path, "linux", "--granule", "4k", code=1).stdout
    assert "does not end" in said
    assert re.search(r"pgtable\.c:\d+", said)
    assert len(said.split("Script:")[1].split("\n\n")[0].splitlines()) <= 8


# --- cut short ---


def lingering(group: int) -> str:
    """What is left of a process group after a moment: multiprocessing's resource tracker ends when it notices that
    everybody else has."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return ""
        time.sleep(0.02)
    return subprocess.run(
        ["ps", "-o", "pid,args", "-s", str(group)], capture_output=True, text=True, check=False
    ).stdout


def test_ctrl_c_and_sigterm_keep_what_was_found(tmp_path: Path) -> None:
    """Exit code 3 in every phase, a sentence about no machine, no process and no folder left behind."""
    write(tmp_path / "linux")
    cache = tmp_path / "cache"
    left = tmp_path / "tmp"
    left.mkdir()
    for number, wait_for in (
        (signal.SIGINT, "compiling"),
        (signal.SIGTERM, "compiling"),
        (signal.SIGTERM, " operations"),
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "inspector", "crosscheck", "linux", "--ops", "100000000", "--debug"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "INSPECTOR_HARNESS_BUILD": str(cache), "TMPDIR": str(left)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if wait_for in line:
                break
        if wait_for == "compiling":
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 3, out + err
        assert "inspector: interrupted; " in err
        assert "machine" not in err
        assert "cut short after" in out
        assert not lingering(process.pid), (number, wait_for)
        assert not list(cache.glob(".*"))
        assert not list(left.iterdir())


# --- installed ---


def test_it_works_from_a_wheel(tmp_path: Path) -> None:
    """The harness and the shims are in what is installed; nothing is reached by way of the source tree.

    A wheel is the archive of what is installed here.
    """
    sources = tmp_path / "sources"
    names = git(ROOT, "ls-files", "inspector", "gdb_scripts", "pyproject.toml", "README.md", "LICENSE").splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, sources / name)
    installed = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(sources)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    shutil.rmtree(sources)
    write(tmp_path / "linux")
    settings = {"PYTHONPATH": str(installed), "INSPECTOR_HARNESS_BUILD": str(tmp_path / "cache")}
    said = inspector(tmp_path, "linux", *QUICK, code=0, env=settings).stdout
    assert "no difference" in " ".join(said.split())
    where = [sys.executable, "-c", "import inspector; print(inspector.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, check=True)
    assert found.stdout.strip().startswith(str(installed))
