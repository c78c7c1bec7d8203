"""Tasks and their open files: the way to the VMs of a kernel whose ``vm_list`` cannot be named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.kernel.objects import HostKernel, KernelObject
from inspector.kernel.space import BadPointer

_MAX_FDS = 1 << 20


@dataclass(frozen=True)
class OpenFile:
    """An open file of a process: its number, the ``struct file`` and what KVM hung on it."""

    tgid: int
    command: str
    fd: int
    release: int
    private_data: int


def processes(kernel: HostKernel) -> Iterator[KernelObject]:
    """Every thread-group leader but ``init_task`` itself, by ``task_struct.tasks``."""
    head = kernel.symbols.require("init_task")
    tasks = kernel.member("task_struct", "tasks").offset
    for address in kernel.list_of(kernel.space.runtime(head) + tasks, "task_struct", "tasks"):
        yield kernel.at("task_struct", address)


def threads(kernel: HostKernel, leader: KernelObject) -> Iterator[KernelObject]:
    """Every thread of a process, by ``signal_struct.thread_head``."""
    signal = leader.u("signal")
    if not signal:  # released, about to leave the list
        yield leader
        return
    head = signal + kernel.member("signal_struct", "thread_head").offset
    for address in kernel.list_of(head, "task_struct", "thread_node"):
        yield kernel.at("task_struct", address)


def _files_of(kernel: HostKernel, task: KernelObject, files: int) -> Iterator[OpenFile]:
    """The open files of a ``files_struct``: ``fdt->fd[0 .. max_fds)``, NULL where none is open."""
    fdt = kernel.at("fdtable", kernel.space.pointer(files + kernel.member("files_struct", "fdt").offset))
    count = min(fdt.u("max_fds"), _MAX_FDS)
    release_offset = kernel.member("file_operations", "release").offset
    for fd, address in enumerate(kernel.space.pointers(fdt.u("fd"), count)):
        if not address:
            continue
        file = kernel.at("file", address)
        operations = file.u("f_op")
        if operations:
            release = kernel.space.u64(operations + release_offset)
            yield OpenFile(task.u("tgid"), task.text("comm"), fd, release, file.u("private_data"))


def open_files(kernel: HostKernel, notes: list[str]) -> Iterator[OpenFile]:
    """Every open file of every task; a file table shared by tasks is read once.

    A task whose files cannot be followed (stopped in the middle of an exit, or corrupt) is noted and passed over.
    """
    seen: set[int] = set()
    try:
        for leader in processes(kernel):
            try:
                for task in threads(kernel, leader):
                    files = task.u("files")
                    if files and files not in seen:
                        seen.add(files)
                        yield from _files_of(kernel, task, files)
            except BadPointer as e:
                notes.append(f"open files of pid {leader.u('tgid')} ({leader.text('comm')}) cannot be followed: {e}")
    except BadPointer as e:
        notes.append(f"the list of tasks cannot be followed to its end, VMs may be missing: {e}")
