"""Edits of a source: what fits is made, what does not is named, and the files at hand fit the kernels they name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fixtures.build.edits import DoesNotFit, Edit, apply, edited, read
from fixtures.build.files import Folder, git
from fixtures.kernels.problems import NotAKernel, NotAvailable
from tests.crosscheck.kernels import labels, tree

EDITS = Path(__file__).resolve().parents[2] / "fixtures/edits"
PGTABLE = "arch/arm64/kvm/hyp/pgtable.c"
CODE = """\
static int other(int a);

/* Says one. */
static int one(int a,
\t       int b)
{
\tif (a) {
\t\tother(a);
\t}
\treturn b;
}

int other(int a)
{
\tother(a);
\treturn other(a - 1);
}
"""


def edit(function: str, match: str = "", text: str = "", before: str = "") -> Edit:
    return Edit("a.c", function, match, text, before)


def test_a_match_is_replaced_in_its_function_alone() -> None:
    """`other(a);` is in both; groups are expanded; the header is the function's too."""
    assert apply(edit("one", r"other\((\w)\);", r"other(\1 + 1);"), CODE) == CODE.replace(
        "\t\tother(a);", "\t\tother(a + 1);"
    )
    assert "static noinline int one(" in apply(edit("one", r"^static int one", "static noinline int one"), CODE)


@pytest.mark.parametrize(
    ("function", "match", "said"),
    [
        ("one", "nothing", "'nothing' is not in one of a.c"),
        ("other", r"other\(", r"'other\(' is 3 times in other of a.c"),
        ("none", "x", "a.c defines none nowhere"),
        ("oth", "x", "a.c defines oth nowhere"),
    ],
)
def test_what_is_not_there_once_is_named(function: str, match: str, said: str) -> None:
    with pytest.raises(DoesNotFit) as error:
        apply(edit(function, match), CODE)
    assert str(error.value) == said


def test_a_function_moves_with_its_comment() -> None:
    """In front of another; the text is otherwise as it was."""
    moved = apply(edit("other", before="one"), CODE)
    assert moved.index("int other(int a)\n{") < moved.index("/* Says one. */") < moved.index("static int one(")
    assert sorted(filter(None, moved.splitlines())) == sorted(filter(None, CODE.splitlines()))


FORMS = """\
what = "x"
[[form]]
of = ["1"]
[[form.edit]]
file = "a.c"
function = "gone"
match = 'x'
with = ''
[[form]]
of = ["2"]
[[form.edit]]
file = "a.c"
function = "one"
match = 'return b'
with = 'return a'
"""


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "Makefile").write_text("VERSION = 6\n")
    (folder / "a.c").write_text(CODE)
    git(folder, "init", "--quiet")
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    return Folder(folder, tmp_path / "scratch.git", {})


def test_the_form_that_fits_is_made_and_the_source_is_not_written(source: Folder, tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(FORMS)
    files = edited(source, [tmp_path / "e.toml"])
    assert dict(files.read(["a.c"]))["a.c"].decode() == CODE.replace("return b", "return a")
    assert files.entries()["a.c"].sha != source.entries()["a.c"].sha
    assert (source.root / "a.c").read_text() == CODE
    # Twice: what the first left does not fit any more, and each form says why.
    with pytest.raises(NotAvailable) as error:
        edited(source, [tmp_path / "e.toml"] * 2)
    assert str(error.value).splitlines() == [
        "e.toml in its form for 1 does not fit: a.c defines gone nowhere",
        "e.toml in its form for 2 does not fit: 'return b' is not in one of a.c",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "what = 'x'",
        "form = []",
        "[[form]]\nof = ['1']\nedit = []",
        FORMS.replace("match = 'x'", "match = '('"),
        FORMS.replace("with = ''", "before = 'one'"),
    ],
)
def test_what_is_no_file_of_edits(source: Folder, tmp_path: Path, text: str) -> None:
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(NotAKernel, match=r"e\.toml is no file of edits"):
        edited(source, [tmp_path / "e.toml"])


FILES = sorted(EDITS.rglob("*.toml"))


@pytest.mark.harness
@pytest.mark.parametrize("label", [label for label in labels() if label in ("6.12", "7.2", "7.3")])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_edits_fit_the_releases_that_they_name(path: Path, label: str) -> None:
    """Those of pgtable.c, which the cross-check's sources have."""
    (form,) = (form for form in read(path) if label in form.of)
    text = tree(label).text[PGTABLE]
    for each in form.edits:
        if each.file == PGTABLE:
            after = apply(each, text)
            assert after != text
            text = after
