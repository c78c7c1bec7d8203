"""The wheel: built from what the package is made of, installed where nothing of the tree is in reach, and run there."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import inspector
from inspector.crosscheck.build import OURS as HARNESS

pytestmark = pytest.mark.processes

REPO = Path(__file__).resolve().parents[1]
CAPTURE = REPO / "fixtures/captures/7.3-max.s2cap"
MADE_OF = ("inspector", "gdb_scripts", "pyproject.toml", "README.md", "LICENSE")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]

#: What is no module and still needed: the harness's and the plugin's C, the pages' templates, the mark of its types.
DATA = ("inspector/crosscheck/c/", "inspector/trace/c/", "inspector/report/html/assets/", "inspector/py.typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From a copy: a folder `build` that somebody left in the tree would put modules of yesterday into it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in MADE_OF:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel in it, which finds what it depends on where we do."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    (libraries,) = folder.glob("lib/python3*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--prefix", str(folder)]
    subprocess.run([*command, "--ignore-installed", str(wheel)], check=True, capture_output=True)
    # One by one: beside them, our own environment has the tree.
    for found in _dependencies():
        (libraries / found.name).symlink_to(found)
    return folder / "bin"


def _dependencies() -> set[Path]:
    """What the distributions that the package depends on have installed, folders and single modules."""
    names, known = [re.split(r"[^\w.-]", one)[0] for one in PROJECT["dependencies"]], set[str]()
    found = set[Path]()
    while names:
        if (name := names.pop()) in known:
            continue
        known.add(name)
        one = metadata.distribution(name)
        tops = {path.parts[0] for path in one.files or () if path.parts[0] not in ("..", "__pycache__")}
        found |= {Path(str(one.locate_file(top))) for top in tops}
        names += [re.split(r"[^\w.-]", more)[0] for more in one.requires or () if "extra ==" not in more]
    return found


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "INSPECTOR"))}
    return subprocess.run([program, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_everything_of_the_tree_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("inspector", "gdb_scripts"):
        for path in sorted((REPO / name).rglob("*")):
            inside = path.relative_to(REPO).as_posix()
            if path.suffix == ".py" or (inside.startswith(DATA) and path.is_file()):
                assert inside in names
    assert sum(name.startswith(DATA) for name in names) > 20
    assert not any(name.split("/")[0] in ("tests", "fixtures", "docs") for name in names)


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (one for one in archive.namelist() if one.endswith("/METADATA"))
    found = email.message_from_bytes(archive.read(name))
    assert found["Name"] == "kvm-stage2-inspector" and found["Version"] == inspector.__version__
    assert found["License-Expression"] == "GPL-2.0-or-later"
    assert found["Requires-Python"] == ">=3.11"
    assert str(found.get_payload()).lstrip().startswith("# kvm-stage2-inspector")
    pythons = [one for one in found.get_all("Classifier", []) if re.search(r":: 3\.\d+$", one)]
    assert [one.rpartition(" ")[2] for one in pythons] == ["3.11", "3.12", "3.13", "3.14"]
    assert set(found.get_all("Provides-Extra", [])) == {*PROJECT["optional-dependencies"]}
    assert any(one.endswith("/LICENSE") for one in archive.namelist())


def test_it_runs_where_no_tree_is(installed: Path, tmp_path: Path) -> None:
    program = installed / "inspector"
    where = "import inspector; print(inspector.__file__)"
    assert Path(run(installed / "python", "-c", where, cwd=tmp_path).stdout).is_relative_to(installed.parent)
    assert run(program, "--version", cwd=tmp_path).stdout == f"inspector, version {inspector.__version__}\n"
    checked = run(program, "--from", str(CAPTURE), "check", "--json", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert json.loads(checked.stdout)["findings"] == []
    drawn = run(program, "--from", str(CAPTURE), "dump", "--html", "tables.html", cwd=tmp_path)
    assert drawn.returncode == 0 and (tmp_path / "tables.html").stat().st_size > 100_000


def test_what_it_compiles_and_sources_is_there(installed: Path, tmp_path: Path) -> None:
    asked = (
        "from pathlib import Path; from inspector.crosscheck.build import OURS; "
        "from inspector.target.gdb_memory import SCRIPTS; from inspector.trace import plugin; "
        "print(OURS, SCRIPTS, plugin.build(4, Path('built').resolve()))"
    )
    harness, scripts, probe = map(Path, run(installed / "python", "-c", asked, cwd=tmp_path).stdout.split())
    assert {path.name for path in harness.iterdir()} == {path.name for path in HARNESS.iterdir()}
    assert (scripts / "stage2.py").is_file()
    assert probe.is_relative_to(tmp_path) and probe.read_bytes()[:4] == b"\x7fELF"


def test_gdb_is_told_of_this_very_program(installed: Path, tmp_path: Path) -> None:
    """Through a link too, as pipx makes one."""
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin/inspector"
    link.symlink_to(installed / "inspector")
    for program in (installed / "inspector", link):
        told = json.loads(run(program, "gdb-init", "--json", cwd=tmp_path).stdout)
        assert told["program"] == str(installed / "inspector")
        assert Path(told["script"]).is_relative_to(installed.parent) and Path(told["script"]).is_file()


def test_what_needs_a_checkout_says_so(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "inspector", "validate", "--kernel", "6.12", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "inspector: the machines are started by run_qemu.sh: run this from a checkout of the project\n"
    )
