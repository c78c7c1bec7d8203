"""Which selftests are built, with which words, and from which files of a tree."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest

from fixtures.guest.problems import BadProgram
from fixtures.guest.workload import of_selftests
from fixtures.kernels.problems import NotAKernel
from fixtures.selftests.build import MANIFEST, build, is_needed
from fixtures.selftests.wanted import SELFTESTS, mode_of, words_of
from tests.fixtures_.test_guest import build as build_program

HEADER = """
enum vm_guest_mode {
\tVM_MODE_P52V48_4K,
\tVM_MODE_P48V48_4K,
\tVM_MODE_P40V48_4K,
\tVM_MODE_PXXV48_4K,\t/* For 48bits VA but ANY bits PA */
\tNUM_VM_MODES,
};
"""


@pytest.mark.parametrize("name", ["kvm_util.h", "kvm_util_base.h"])
def test_a_mode_is_a_number_of_the_tree(tmp_path: Path, name: str) -> None:
    (tmp_path / "include").mkdir()
    assert mode_of(tmp_path) is None
    (tmp_path / "include" / name).write_text(HEADER)
    assert mode_of(tmp_path) == 2
    test = next(each for each in SELFTESTS if each.name == "dirty_log_test")
    assert words_of(test, 2)[:2] == ["-m", "2"]
    assert words_of(test, None) == [word for word in test.words if word not in ("-m", "{mode}")]


def test_files_that_they_are_made_of() -> None:
    for path in (
        "Makefile",
        "include/uapi/linux/kvm.h",
        "arch/arm64/include/uapi/asm/kvm.h",
        "tools/arch/arm64/tools/gen-sysreg.awk",
        "tools/testing/selftests/lib.mk",
        "tools/testing/selftests/kvm/lib/kvm_util.c",
        "tools/testing/selftests/clone3/clone3_selftests.h",
    ):
        assert is_needed(path), path
    for path in ("mm/memory.c", "arch/arm64/boot/dts/apple/t8103.dtsi", "tools/testing/selftests/net/tun.c", "README"):
        assert not is_needed(path), path


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotAKernel, match="does not exist"):
        build(tmp_path / "cache", tmp_path / "none", 1)
    tree = tmp_path / "tree"
    (tree / "arch/arm64/kvm").mkdir(parents=True)
    (tree / "Makefile").write_text("all:\n")
    with pytest.raises(NotAKernel, match="has no tools/testing/selftests/kvm"):
        build(tmp_path / "cache", tree, 1)


def test_each_program_comes_along_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    build_program(tmp_path, "-static").rename(tmp_path / "made" / "one")
    listed = [{"name": "one", "words": ["-b", "16M"], "program": "one"}, {"name": "two", "words": [], "problem": "no"}]
    with pytest.raises(BadProgram, match="no folder of selftests"):
        of_selftests(tmp_path / "made")
    (tmp_path / "made" / MANIFEST).write_text(json.dumps(listed))
    archive = gzip.decompress(of_selftests(tmp_path / "made"))
    (tmp_path / "out").mkdir()
    subprocess.run(["cpio", "--quiet", "-idm"], input=archive, cwd=tmp_path / "out", check=True)
    assert (tmp_path / "out/workload/one/command").read_bytes() == b"/workload/one/program\0-b\x0016M\0"
    assert (tmp_path / "out/workload/one/program").stat().st_mode & 0o100
    assert not (tmp_path / "out/workload/two").exists()
