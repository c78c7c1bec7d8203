"""What a traced host runs besides the scenarios: random actions, a program that was brought along, a Linux guest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.live.counting import ended as counted_by
from tests.live.counting import with_counter
from tests.live.machine import RUN_QEMU, Machine, common_options, process_alive
from tests.live.test_trace import inspect

pytestmark = pytest.mark.live

PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <linux/kvm.h>

int main(int argc, char **argv)
{
	int vm = ioctl(open("/dev/kvm", O_RDWR), KVM_CREATE_VM, 0);

	printf("made VM: %s; %d arguments, the last is <%s>\n", vm < 0 ? "no" : "yes", argc - 1, argv[argc - 1]);
	fflush(stdout);
	if (argc > 1 && argv[1][0] == 's')
		sleep(1000);
	if (argc > 1 && argv[1][0] == 'a')
		abort();
	return argc > 1 ? atoi(argv[1]) : 0;
}
"""


def run_qemu(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """run_qemu.sh to its end."""
    done = subprocess.run(
        [str(RUN_QEMU), *common_options(), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr
    return done


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What run_qemu.sh says last; it is one line."""
    last = done.stderr.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("run_qemu.sh: "), done.stderr
    return last.removeprefix("run_qemu.sh: ")


def build(folder: Path, *flags: str, compiler: str = "aarch64-linux-gnu-gcc") -> Path:
    """The program above."""
    source, program = folder / "program.c", folder / "program"
    source.write_text(PROGRAM)
    subprocess.run([compiler, *flags, "-o", str(program), str(source)], check=True)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("program"), "-static")


# --- random actions ------------------------------------------------------------------------------------------------


def test_random_actions_are_followed_one_and_all(tmp_path: Path) -> None:
    """Every operation that a second plugin counts; the exerciser says what it did, and that nothing failed."""
    wrapper = with_counter(
        tmp_path, Path(os.environ["INSPECTOR_KERNELS"]) / os.environ["INSPECTOR_DEFAULT_KERNEL"] / "vmlinuz"
    )
    # The counter knows link addresses alone.
    options = ["--trace", "--qemu", str(wrapper)]
    with Machine.start(scenario="random,seed=3,actions=600", append="nokaslr", options=options) as machine:
        ended = machine.wait_for("workload_ended")
        assert (ended["name"], ended["seed"], ended["code"]) == ("random", 3, 0)
        assert not machine.named("error")
        (told,) = machine.named("random")
        assert told["actions"] == sum(told["done"].values()) == 600
        kinds = {name for name, count in told["done"].items() if count}
        assert kinds >= {"touch", "both", "race", "create", "slot", "drop", "protect", "log_on", "log_get"}
        counted = counted_by(machine.qemu_pid, tmp_path)
        done = inspect("trace", "--run-dir", machine.run_dir, "--for", "0", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["broken"]) == ("clean", [])
    assert document["pages_made"] == document["pages_freed"], "no VM is left"
    assert counted == document["operations_by_name"]
    assert document["operations"] > 600


def test_a_seed_gives_the_same_actions_and_a_weight_of_nothing_none() -> None:
    quick = "actions=150,merge=0,age=0,collapse=0"
    runs = (
        f"random,seed=5,{quick}",
        f"random,seed=5,{quick}",
        f"random,seed=6,{quick}",
        f"random,{quick},drop=0,race=0",
    )
    with Machine.start(scenario=",".join(runs)) as machine:
        machine.wait_for("workload_ended", count=len(runs))
        first, again, other, without = (each["done"] for each in machine.named("random"))
        seeds = [each["seed"] for each in machine.named("workload_started")]
        assert not machine.named("error")
    assert first == again != other
    assert seeds[:3] == [5, 5, 6]
    assert without["drop"] == without["race"] == 0
    assert without["touch"] > 50


@pytest.mark.parametrize(
    ("to", "what", "code", "said"),
    [
        ("machine", signal.SIGKILL, 3, "the machine ended before its workload did"),
        ("driver", signal.SIGINT, 130, None),
    ],
)
def test_one_that_is_cut_short_leaves_nothing(to: str, what: signal.Signals, code: int, said: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [str(RUN_QEMU), *common_options(), "trace", "--scenario", "random,seconds=300"],
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        console = wait_for_console(Path(folder), "workload_started")
        qemu = int((console.parent / "pid").read_text())
        os.kill(qemu if to == "machine" else process.pid, what)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert said is None or errors.rstrip("\n").endswith(said), errors
        assert not process_alive(qemu)
        assert not list(Path(folder).glob("s2-machine.*")), "no run folder stays"


def test_another_machine_that_begins_leaves_an_ended_one_to_be_judged(tmp_path: Path) -> None:
    """A temporary machine's folder goes when its run_qemu.sh has, not when its QEMU has."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder}
        command = [str(RUN_QEMU), *common_options(), "run", "--", "sh", "-c", "echo up; read line"]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            (mine,) = Path(folder).glob("s2-machine.*")
            os.kill(int((mine / "pid").read_text()), signal.SIGKILL)
            other = [str(RUN_QEMU), *common_options(), "run", "--", "true"]
            subprocess.run(other, env=environment, check=True, capture_output=True)
            assert (mine / "console.log").exists()
            process.stdin.close()
        assert not list(Path(folder).glob("s2-machine.*"))


def wait_for_console(folder: Path, text: str) -> Path:
    """The console log of the temporary machine of a run_qemu.sh, once it has the text."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for log in folder.glob("*/console.log"):
            if text in log.read_text():
                return log
        time.sleep(0.1)
    raise TimeoutError(text)


# --- a program of the user's ---------------------------------------------------------------------------------------


def test_a_program_runs_and_its_trace_is_judged(program: Path, tmp_path: Path) -> None:
    done = run_qemu("trace", "--workload", program, "-o", tmp_path / "run.s2trace", "--", "0", "two words")
    assert done.returncode == 0, done.stderr
    assert "CLEAN" in done.stdout
    assert re.search(r"^ *init +1 ", done.stdout, re.M), done.stdout
    assert json.loads(inspect("replay", tmp_path / "run.s2trace", "--json").stdout)["operations_by_name"]["init"] == 1


def test_its_arguments_arrive(program: Path) -> None:
    options = ["--workload", str(program)]
    started = run_qemu("start", "--name", "test-arguments", *options, "--", "0", 'two  "words"')
    try:
        assert started.returncode == 0, started.stderr
        log = Path(re.findall(r"^ +log +(.+)$", started.stdout, re.M)[0])
        end = time.monotonic() + 30
        while "workload_ended" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.1)
        assert 'made VM: yes; 2 arguments, the last is <two  "words">' in log.read_text()
        assert 'S2X {"event":"workload_ended","name":"program","code":0}' in log.read_text()
    finally:
        run_qemu("stop", "--name", "test-arguments")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("7", "the workload failed with exit code 7"),
        ("abort", "the workload was ended by signal 6"),
        ("sleep", "the workload did not end within 3 s"),
    ],
)
def test_a_program_that_fails_is_told_from_findings(program: Path, argument: str, said: str) -> None:
    done = run_qemu("trace", "--workload", program, "--workload-timeout", "3", "--", argument)
    assert done.returncode == 125, done.stderr
    assert "CLEAN" in done.stdout
    assert said in sentence(done)
    assert "no rule was broken" in sentence(done)


def test_what_cannot_run_there_is_one_sentence(tmp_path: Path) -> None:
    dynamic = build(tmp_path)
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "short").write_bytes(dynamic.read_bytes()[:70])
    cases = {
        dynamic: "not static",
        Path("/bin/true"): "not for arm64",
        tmp_path / "script": "not an ELF program",
        tmp_path / "short": "ends within its program headers",
        tmp_path / "none": "No such file",
        tmp_path: "Is a directory",
    }
    for path, why in cases.items():
        done = run_qemu("trace", "--workload", path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert why in sentence(done)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["trace", "--guest", "plan9"], "there is only linux"),
        (["trace", "--guest", "linux", "--gic-version", "2"], "needs --gic-version 3"),
        (["trace", "--guest", "linux", "--scenario", "big"], "not both"),
        (["trace", "--guest", "linux", "--workload", "x"], "not both"),
        (["stop", "--guest", "linux"], "boots nothing"),
        (["start", "-o", "x"], "-o is of trace"),
        (["trace", "--", "x"], "takes no arguments"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(arguments: list[str], why: str) -> None:
    done = run_qemu(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert why in done.stderr


# --- a Linux guest -------------------------------------------------------------------------------------------------


def test_a_linux_guest_boots_and_powers_off(tmp_path: Path) -> None:
    """Twice: exit code 0 says that both said their last word (fixtures/guest/linux.py)."""
    done = run_qemu("trace", "--guest", "linux", "-o", tmp_path / "run.s2trace")
    assert done.returncode == 0, done.stderr
    document = json.loads(inspect("replay", tmp_path / "run.s2trace", "--json").stdout)
    assert document["verdict"] == "clean"
    assert document["operations_by_name"]["map"] > 10_000
    assert document["pages_made"] == document["pages_freed"]


# --- several programs in one boot, and a machine that somebody owns --------------------------------------------------


def test_several_programs_in_one_boot(program: Path, tmp_path: Path) -> None:
    """Each by its name, to its end, one after the other; and the machine goes when who wanted it is killed."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "it").write_bytes(program.read_bytes())
    listed = [{"name": name, "words": [word], "program": "it"} for name, word in (("good", "0"), ("bad", "7"))]
    (folder / "selftests.json").write_text(json.dumps(listed))
    with subprocess.Popen(["sleep", "600"]) as owner:
        options = ["--name", "test-owned", "--selftests", str(folder), "--scenario", "nokvm"]
        started = run_qemu("start", *options, "--owner", str(owner.pid))
        try:
            assert started.returncode == 0, started.stderr
            for name, code in (("good", 0), ("bad", 7), ("good", 0)):
                done = run_qemu("--name", "test-owned", "send", f"run program {name} seconds=60")
                ended = f'"event": "workload_ended", "name": "{name}", "code": {code}'
                assert ended in done.stdout, done.stdout + done.stderr
            none = run_qemu("--name", "test-owned", "send", "run program none")
            assert none.returncode != 0
            owner.kill()
            owner.wait()
            end = time.monotonic() + 30
            while run_qemu("--name", "test-owned", "status").returncode != 3:
                assert time.monotonic() < end, "it outlives its owner"
                time.sleep(0.2)
        finally:
            owner.kill()
            run_qemu("stop", "--name", "test-owned")
