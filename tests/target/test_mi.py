"""The gdb/MI session by itself: a real gdb, no target."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.findings import BadInput, ExitCode, TargetLost
from inspector.target.mi import GdbError, MiSession, find_gdb, quote

pytestmark = pytest.mark.processes


@pytest.fixture
def session() -> Iterator[MiSession]:
    session = MiSession(find_gdb())
    yield session
    session.quit()


def test_each_answer_belongs_to_its_own_command(session: MiSession) -> None:
    for number in range(200):
        assert session.command(f'-data-evaluate-expression "{number} * 3"').payload["value"] == str(number * 3)


def test_console_output_comes_with_its_command(session: MiSession) -> None:
    assert session.console("echo one").console == "one"
    assert session.console("print 6 * 7").console.strip().endswith("= 42")
    assert session.console("show architecture").console.count("aarch64") == 1


def test_an_error_is_gdbs_own_sentence_and_the_session_goes_on(session: MiSession) -> None:
    with pytest.raises(GdbError, match="No symbol table"):
        session.command("-data-evaluate-expression no_such_name")
    assert session.command("-data-evaluate-expression 1").payload["value"] == "1"


@pytest.mark.parametrize("text", ["plain", 'with "quotes"', "back\\slash", 'both \\" of them', "tab\\t"])
def test_quoting_reaches_gdb_unchanged(session: MiSession, text: str) -> None:
    assert session.console("python print(repr(" + repr(text) + "))").console.strip() == repr(text)
    assert quote("a") == '"a"'


def test_a_command_is_one_line(session: MiSession) -> None:
    with pytest.raises(ValueError, match="one line"):
        session.command("-gdb-version\n-gdb-exit")


def test_a_command_that_takes_too_long_is_lost_and_the_next_one_still_matches(session: MiSession) -> None:
    with pytest.raises(TargetLost, match="did not come in time"):
        session.console("python import time; time.sleep(1); print('late')", timeout=0.1)
    session.drain(10)
    assert session.console("echo after").console == "after"


def test_much_on_stderr_does_not_block(session: MiSession) -> None:
    session.console("python import os; [os.write(2, b'x' * 65535 + b'\\n') for _ in range(64)]")
    assert session.console("echo alive").console == "alive"


def test_a_killed_gdb_is_target_lost_at_once_and_ever_after(session: MiSession) -> None:
    os.kill(session.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(TargetLost, match="gdb ended") as caught:
            session.command("-gdb-version")
        assert caught.value.exit_code == ExitCode.TARGET_LOST
    assert not session.alive


def test_gdb_killed_in_the_middle_of_a_command(session: MiSession) -> None:
    with pytest.raises(TargetLost, match=r"gdb ended .signal 9"):
        session.console("python import os, time; os.kill(os.getpid(), 9); time.sleep(5)")


def test_gdb_is_out_of_the_terminals_reach(session: MiSession) -> None:
    assert os.getsid(session.pid) == session.pid != os.getsid(0)


def test_no_configuration_of_the_user_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gdbinit").write_text(f"shell touch {tmp_path}/home\n")
    (tmp_path / ".gdbearlyinit").write_text("set startup-quietly off\n")
    (tmp_path / "gdb").mkdir()
    (tmp_path / "gdb" / "gdbinit").write_text(f"shell touch {tmp_path}/xdg\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://localhost:1")
    monkeypatch.chdir(tmp_path)
    session = MiSession(find_gdb())
    try:
        assert session.console("show auto-load python-scripts").console.strip().endswith("off.")
        assert session.console("show auto-load local-gdbinit").console.strip().endswith("off.")
        assert "localhost" not in session.console("show debuginfod urls").console
    finally:
        session.quit()
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "xdg").exists()


def test_no_gdb_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="install gdb-multiarch") as caught:
        find_gdb()
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_gdb_without_aarch64_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gdb", "aarch64-linux-gnu-gdb"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Undefined item: \"aarch64\".' >&2\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="no gdb for AArch64"):
        find_gdb()
    with pytest.raises(BadInput, match="does not support AArch64"):
        find_gdb("gdb")
    with pytest.raises(BadInput, match="is not there"):
        find_gdb("/no/such/gdb")


def test_a_plain_gdb_that_knows_aarch64_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("gdb-multiarch") or find_gdb()
    (tmp_path / "gdb").write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    (tmp_path / "gdb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gdb() == str(tmp_path / "gdb")


def test_a_gdb_that_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "gdb").write_text("#!/bin/sh\necho 'cannot load libpython' >&2\nexit 1\n")
    (tmp_path / "gdb").chmod(0o755)
    with pytest.raises(TargetLost, match="cannot load libpython"):
        MiSession(str(tmp_path / "gdb"))


def test_gdb_leaves_no_core_behind(session: MiSession) -> None:
    """gdb dumps core when it meets an error of its own, and raises its limit for that: the hard limit holds."""
    assert resource.prlimit(session.pid, resource.RLIMIT_CORE) == (0, 0)
