"""What came of a selftest: passed, skipped, failed, ended, or failed where QEMU is the reason.

The lines are those that the tests of 6.12.117 print on a machine of ours.
"""

from __future__ import annotations

from typing import Any

import pytest

from inspector.findings import ExitCode
from inspector.validate.selftests import Selftest, _left_out, _tell_of

PAGE_FAULT = [
    "Test: ro_memslot_uffd_guest_write64",
    "Testing guest mode: PA-bits:40,  VA-bits:48,  4K pages",
    "Test: ro_memslot_no_syndrome_guest_cas",
    "==== Test Assertion Failure ====",
    "  aarch64/page_fault_test.c:632: test->expected_events.uffd_faults == events.uffd_faults",
    "  pid=139 tid=139 errno=9 - Bad file descriptor",
    "  0x2 != 0x1 (test->expected_events.uffd_faults != events.uffd_faults)",
]


def told(name: str, ended: dict[str, object], said: list[str], found: int = 0) -> tuple[ExitCode, str, list[str]]:
    parts: list[tuple[Any, ...]] = []
    _tell_of(Selftest(name), ended, (1854, found), said, lambda *part, **_: parts.append(part))
    ((_, code, summary, *more),) = parts
    return code, summary, more[0] if more else []


def test_one_that_passes() -> None:
    assert told("demand_paging_test", {"code": 0}, []) == (ExitCode.CLEAN, "1,854 operations, 0 findings", [])
    # What is found has parts of its own.
    assert told("demand_paging_test", {"code": 0}, [], 2) == (ExitCode.CLEAN, "1,854 operations, 2 findings", [])


def test_one_that_is_skipped_says_why() -> None:
    said = ["Random seed: 0x6b8b4567", "1..0 # SKIP - CONFIG_IDLE_PAGE_TRACKING is not enabled"]
    code, summary, _ = told("access_tracking_perf_test", {"code": 4}, said)
    assert (code, summary) == (ExitCode.CLEAN, "skipped: CONFIG_IDLE_PAGE_TRACKING is not enabled")


@pytest.mark.parametrize(
    ("ended", "how"),
    [
        ({"code": 254}, "it failed with exit code 254 after 1,854 operations, 0 findings"),
        ({"signal": 11}, "it was ended by signal 11 after 1,854 operations, 0 findings"),
        ({"timeout": 500}, "it did not end within 500 s after 1,854 operations, 0 findings"),
    ],
)
def test_one_that_fails_is_no_finding_and_not_passed_over(ended: dict[str, object], how: str) -> None:
    said = ["==== Test Assertion Failure ====", "  dirty_log_test.c:911: p.iterations > 2"]
    assert told("dirty_log_test", ended, said) == (ExitCode.UNTESTABLE, how, said)


def test_what_fails_under_qemu_whatever_the_kernel_does() -> None:
    code, summary, _ = told("page_fault_test", {"code": 254}, PAGE_FAULT)
    assert code is ExitCode.CLEAN
    assert summary.endswith("up to its case ro_memslot_no_syndrome_guest_cas, which fails under QEMU")
    # Another case, another assertion, another test: that is the kernel's.
    for name, said in (
        ("page_fault_test", [line.replace("guest_cas", "guest_st_preidx") for line in PAGE_FAULT]),
        ("page_fault_test", [line.replace("uffd_faults", "mmio_exits") for line in PAGE_FAULT]),
        ("page_fault_test", [line for line in PAGE_FAULT if not line.startswith("Test:")]),
        ("dirty_log_test", PAGE_FAULT),
    ):
        assert told(name, {"code": 254}, said)[0] is ExitCode.UNTESTABLE


def test_an_alarm_of_its_own_says_how_fast_the_machine_is() -> None:
    code, summary, _ = told("memslot_perf_test", {"signal": 14}, [])
    assert code is ExitCode.CLEAN
    assert summary == "1,854 operations, 0 findings, up to where its own alarm went off: it was too slow here"
    assert told("memslot_perf_test", {"signal": 11}, [])[0] is ExitCode.UNTESTABLE


def test_what_is_left_out_is_told() -> None:
    made = {"name": "dirty_log_test", "words": [], "slow": True}
    assert _left_out(made, quick=False) == ""
    assert _left_out(made, quick=True) == "it takes minutes, which --quick has not"
    assert _left_out({**made, "slow": False}, quick=True) == ""
    problem = "dirty_log_test.c:775: undefined reference to `TEST_ASSERT_EQ'"
    assert _left_out({**made, "problem": problem}, quick=True) == f"it cannot be built from this source ({problem})"
