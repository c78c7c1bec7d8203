"""Addresses of stubs: what users type."""

from __future__ import annotations

import pytest

from inspector.findings import BadInput, ExitCode
from inspector.target.address import TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:1234", TcpAddress("localhost", 1234)),
        (":1234", TcpAddress("localhost", 1234)),
        ("tcp:10.0.0.7:65535", TcpAddress("10.0.0.7", 65535)),
        ("tcp::1234", TcpAddress("localhost", 1234)),
        ("[::1]:1234", TcpAddress("::1", 1234)),
        ("/run/stub", UnixAddress("/run/stub")),
        ("unix:/run/stub", UnixAddress("/run/stub")),
        ("./stub", UnixAddress("./stub")),
        ("/odd/name:12", UnixAddress("/odd/name:12")),
    ],
)
def test_an_address_is_understood(text: str, expected: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == expected


def test_an_ipv6_address_is_shown_as_gdb_takes_it() -> None:
    assert str(parse_address("[::1]:1234")) == "[::1]:1234"


@pytest.mark.parametrize("text", ["", " ", "localhost:", ":0", "host:65536", "unix:", "/a\n/b", "/" + "x" * 200])
def test_an_impossible_address_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_address(text)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value).strip("'") or "\\n" in str(caught.value)


def test_what_gdb_cannot_be_told_is_not_an_address() -> None:
    """A byte that is not UTF-8 arrives from the command line as a lone surrogate (PEP 383)."""
    with pytest.raises(BadInput, match="is not an address"):
        parse_address("\udcff")
