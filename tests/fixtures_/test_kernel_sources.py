"""apt's sources in both formats (sources.list(5)), and the private list made from them."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest

from fixtures.kernels.fetch import cached, newest_of_series, parse_wanted
from fixtures.kernels.image import plain_image, prepare_image
from fixtures.kernels.problems import NotAKernel, NotAvailable
from fixtures.kernels.process import complaint
from fixtures.kernels.sources import Source, parse_deb822, parse_one_line, stanzas_for

DEB822 = """\
# main archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
Trusted: yes

Types: deb
# a comment inside
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://vendor.example/apt
Suites: stable
Components: main

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://one-architecture.example/debian
Suites: bookworm
Components: main
Architectures: amd64
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb [arch=amd64,arm64 signed-by=/k.gpg trusted=yes] http://mirror.example/debian bookworm main contrib # why
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-security main
deb http://nodistro.example/ ./
"""


def fields(stanza: str) -> dict[str, str]:
    """A rendered stanza, read back by a reader of our own making: one ``Name: value`` a line, folded lines joined."""
    found: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith(" "):
            found[name] += "\n" + line
        else:
            name, _, value = line.partition(": ")
            found[name.rstrip(":")] = value
    return found


def test_deb822_gives_the_running_release_as_configured() -> None:
    stanzas = [fields(s) for s in stanzas_for("bookworm", "bookworm", parse_deb822(DEB822))]
    assert [s["URIs"] for s in stanzas] == ["http://mirror.example/debian", "http://mirror.example/debian-security"]
    assert stanzas[0]["Suites"] == "bookworm bookworm-updates"
    assert stanzas[0]["Signed-By"] == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert stanzas[1]["Signed-By"].splitlines()[1:] == [
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " abc",
        " -----END PGP PUBLIC KEY BLOCK-----",
    ]
    assert all(s["Types"] == "deb" for s in stanzas)


def test_one_line_gives_the_running_release_as_configured() -> None:
    stanzas = [fields(s) for s in stanzas_for("bookworm", "bookworm", parse_one_line(ONE_LINE))]
    assert [s["Suites"] for s in stanzas] == ["bookworm", "bookworm-security"]
    assert stanzas[0]["Components"] == "main contrib"
    assert stanzas[0]["Signed-By"] == "/k.gpg"
    assert "Signed-By" not in stanzas[1]


@pytest.mark.parametrize("text", [DEB822, ONE_LINE])
def test_no_option_that_weakens_signatures_is_kept(text: str) -> None:
    sources = list(parse_deb822(text)) if text is DEB822 else list(parse_one_line(text))
    assert any("trusted" in source.options for source in sources)
    for suite in ("bookworm", "trixie"):
        assert "trusted" not in "".join(stanzas_for(suite, "bookworm", sources)).lower()


def test_another_suite_is_asked_of_the_main_archive_only() -> None:
    stanzas = [fields(s) for s in stanzas_for("trixie-backports", "bookworm", parse_deb822(DEB822))]
    assert [(s["URIs"], s["Suites"]) for s in stanzas] == [("http://mirror.example/debian", "trixie-backports")]
    assert stanzas[0]["Signed-By"].startswith("/usr/share/keyrings/debian-archive-keyring.")


def test_nothing_usable_gives_nothing() -> None:
    vendor = Source(("http://vendor.example/",), ("stable",), ("main",))
    assert stanzas_for("bookworm", "bookworm", [vendor]) == []


def test_complaints_name_no_server() -> None:
    said = complaint("W: x\nE: Failed to fetch https://user:secret@mirror.example/debian/x  404  Not Found\n")
    assert said == "Failed to fetch <server>  404  Not Found"


# Names as Debian's archive has them.
NAMES = [
    "linux-image-5.10.0-30-cloud-arm64",
    "linux-image-5.10.0-32-cloud-arm64",
    "linux-image-5.10.0-32-cloud-arm64-unsigned",
    "linux-image-5.10.0-32-cloud-arm64-dbg",
    "linux-image-5.10.0-32-arm64",
    "linux-image-6.12.107+deb13-arm64-16k",
    "linux-image-6.12.117+deb13-arm64-16k",
    "linux-image-6.12.117+deb13-arm64-16k-dbg",
    "linux-image-6.12.117+deb13-cloud-arm64",
    "linux-image-6.12.99+deb13-arm64-16k",
    "linux-image-cloud-arm64",
]


@pytest.mark.parametrize(
    ("wanted", "package"),
    [
        ("5.10", "linux-image-5.10.0-32-cloud-arm64"),
        ("6.12", "linux-image-6.12.117+deb13-cloud-arm64"),
        ("6.12-16k", "linux-image-6.12.117+deb13-arm64-16k"),
        ("5.10-16k", None),
        ("6.1", None),
    ],
)
def test_the_newest_image_of_a_series_is_taken(wanted: str, package: str | None) -> None:
    assert newest_of_series(NAMES, parse_wanted(wanted)) == package


@pytest.mark.parametrize("text", ["6", "6.12-64k", "Image", "6.12.1", "-16k", "trixie main"])
def test_what_names_no_kernel_is_refused(text: str) -> None:
    with pytest.raises(NotAvailable, match="neither a file"):
        parse_wanted(text)


def test_a_cached_kernel_is_found_by_its_series_and_by_the_suite_whose_current_it_is(tmp_path: Path) -> None:
    for label, suite, current in (
        ("6.12", "trixie", True),
        ("6.12-16k", "trixie", True),
        ("7.2", "trixie-backports", False),
    ):
        folder = tmp_path / label
        folder.mkdir()
        (folder / "vmlinuz").touch()
        (folder / "suite").write_text(suite + "\n")
        if current:
            (folder / "current").touch()
    found = {
        text: cached(tmp_path, parse_wanted(text), debug=False)
        for text in ("6.12", "trixie", "6.12-16k", "trixie-16k", "7.2", "trixie-backports", "7.2-16k", "6.1")
    }
    assert {text: folder and folder.name for text, folder in found.items()} == {
        "6.12": "6.12",
        "trixie": "6.12",
        "6.12-16k": "6.12-16k",
        "trixie-16k": "6.12-16k",
        "7.2": "7.2",
        "trixie-backports": None,
        "7.2-16k": None,
        "6.1": None,
    }
    assert cached(tmp_path, parse_wanted("6.12"), debug=True) is None


IMAGE = bytes(56) + b"ARM\x64" + bytes(4) + bytes(range(256)) * 64


def zboot(kind: bytes, payload: bytes) -> bytes:
    """The header of drivers/firmware/efi/libstub/zboot-header.S, then the payload and its size."""
    header = b"MZ\0\0zimg" + struct.pack("<IIII", 64, len(payload), 0, 0) + kind.ljust(32, b"\0") + bytes(8)
    return header + payload + struct.pack("<I", len(IMAGE))


@pytest.mark.parametrize(
    "packed",
    [
        IMAGE,
        gzip.compress(IMAGE, mtime=0),
        gzip.compress(IMAGE, mtime=0) + b"trailing",
        zboot(b"gzip", gzip.compress(IMAGE, mtime=0)),
        zboot(b"xzkern", lzma.compress(IMAGE)),
        zboot(b"lzma", lzma.compress(IMAGE, format=lzma.FORMAT_ALONE)),
    ],
)
def test_every_form_unpacks_to_the_same_image(packed: bytes, tmp_path: Path) -> None:
    assert plain_image(packed, "x") == IMAGE
    given = tmp_path / "given"
    given.write_bytes(packed)
    prepared = prepare_image(tmp_path / "cache", given)
    assert prepared.read_bytes() == IMAGE
    assert prepare_image(tmp_path / "cache", given) == prepared
    assert given.read_bytes() == packed


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x7fELF" + bytes(100),
        gzip.compress(IMAGE, mtime=0)[:-9],
        gzip.compress(b"something else, of more than sixty bytes, that is no kernel at all", mtime=0),
        b"\x1f\x8b" + bytes(50),
        b"MZ\0\0zimg",
        zboot(b"gzip", gzip.compress(IMAGE, mtime=0)[:-9]),
        zboot(b"xzkern", lzma.compress(IMAGE)[:-9]),
        zboot(b"rot13", IMAGE),
    ],
)
def test_what_is_no_kernel_is_refused(packed: bytes) -> None:
    with pytest.raises(NotAKernel):
        plain_image(packed, "x")
