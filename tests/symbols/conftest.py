"""Which kernels there are to test with: ``INSPECTOR_KERNELS`` holds ``<label>/vmlinuz`` and
``<label>/vmlinux``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def kernels() -> list[Path]:
    """Folders under ``INSPECTOR_KERNELS`` with an Image."""
    folder = os.environ.get("INSPECTOR_KERNELS")
    return sorted(path.parent for path in Path(folder).glob("*/vmlinuz")) if folder else []


def debug_kernels() -> list[Path]:
    """Those of `kernels` that have a vmlinux too."""
    return [path for path in kernels() if (path / "vmlinux").is_file()]


def _summary() -> str:
    images, debug = kernels(), debug_kernels()
    if not images:
        return "symbols: no Images (INSPECTOR_KERNELS): test_kernels.py and test_agreement.py are not collected"
    labels = ", ".join(path.name for path in images)
    if not debug:
        return f"symbols: Images {labels}; no debug vmlinux: test_agreement.py is not collected"
    return f"symbols: Images {labels}; agreement with the vmlinux of {', '.join(path.name for path in debug)}"


collect_ignore = [
    name for name, present in (("test_kernels.py", kernels()), ("test_agreement.py", debug_kernels())) if not present
]


def pytest_report_header() -> str:
    return _summary()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # The header is only asked of the top-level conftest.py files; this is reached from any run that came here.
    terminalreporter.write_line(_summary())
