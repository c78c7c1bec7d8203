"""The options of `inspector validate` put together: what is built, and what is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inspector.crosscheck.package import KEPT
from inspector.findings import BadInput
from inspector.validate.kernels import Build, Kernel
from inspector.validate.request import Asked, request_of
from inspector.validate.verdict import Request

NOTHING: dict[str, Any] = {
    "kernel": None,
    "vmlinux": "",
    "baseline_kernel": None,
    "baseline_vmlinux": "",
    "tree": None,
    "package": None,
    "patches": (),
    "baseline": None,
    "page_size": "4k",
    "debug_kernel": False,
    "depth": "quick",
    "seed": 1,
    "operations": 1000,
    "keep": None,
}


def request(**options: Any) -> Request:
    return request_of(Asked(**(NOTHING | options)), lambda _: None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is kept already: nothing is fetched."""
    monkeypatch.setenv(KEPT, str(tmp_path))
    monkeypatch.setenv("INSPECTOR_HARNESS_BUILD", str(tmp_path / "build"))
    file = tmp_path / "linux-source-6.12_all.deb"
    file.touch()
    return file


def test_a_tree_is_built_and_cross_checked(tmp_path: Path) -> None:
    made = request(tree=str(tmp_path), page_size="16k", debug_kernel=True)
    assert made.kernel == Build(tmp_path, str(tmp_path), [], None, "16k", True)
    assert made.baseline is None
    assert made.source is not None
    assert made.source.source == tmp_path
    assert made.source.baseline is None, "a difference from the baseline is no finding"


def test_a_revision_of_the_tree_as_baseline(tmp_path: Path) -> None:
    made = request(tree=str(tmp_path), patches=("a.patch",), baseline="v6.12")
    assert isinstance(made.kernel, Build)
    assert made.kernel.title == f"{tmp_path} with a.patch, built with 4k pages"
    assert made.baseline == Build(tmp_path, str(tmp_path), (), "v6.12")


def test_a_package_with_patches_is_compared_with_itself(package: Path) -> None:
    made = request(package="linux-source-6.12", patches=("a.patch",))
    assert made.kernel == Build(package, "linux-source-6.12", [Path("a.patch")])
    assert made.baseline == Build(package, "linux-source-6.12")
    assert request(package="linux-source-6.12").baseline is None
    assert request(package="linux-source-6.12", patches=("a.patch",), baseline_kernel="6.12").baseline == Kernel("6.12")


def test_a_given_kernel_is_not_built(tmp_path: Path) -> None:
    made = request(kernel="Image", vmlinux="vmlinux", tree=str(tmp_path), baseline_kernel="6.12")
    assert (made.kernel, made.baseline) == (Kernel("Image", "vmlinux"), Kernel("6.12"))
    assert made.source is not None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "which kernel"),
        ({"patches": ("a",)}, "--patch is about a tree"),
        ({"tree": ".", "package": "linux-source-6.12"}, "two sources"),
        ({"kernel": "Image", "baseline": "v6.12"}, "--baseline-kernel"),
        ({"tree": ".", "vmlinux": "vmlinux"}, "--vmlinux is of --kernel"),
        ({"tree": ".", "baseline": "v6.12", "baseline_kernel": "6.12"}, "two baselines"),
        ({"tree": "some.tar.xz", "baseline": "v6.12"}, "neither a tree"),
        ({"package": "nothing"}, "not the name"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        request(**options)


def test_deterministic_machines_compare_two_kernels() -> None:
    made = request(kernel="Image", baseline_kernel="Other", deterministic=True)
    assert made.deterministic
    with pytest.raises(BadInput, match="give a baseline"):
        request(kernel="Image", deterministic=True)
