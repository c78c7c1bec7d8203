"""The manual page and the script of a shell's completion, as documents."""

from __future__ import annotations

from typing import Literal

from inspector.report.document import Document
from inspector.report.format import Lines, Painter


class ManualPage(Document, frozen=True, kw_only=True):
    """`inspector man`."""

    command: Literal["man"] = "man"
    text: str


class CompletionScript(Document, frozen=True, kw_only=True):
    """`inspector completion`."""

    command: Literal["completion"] = "completion"
    shell: str
    text: str


def page_document(text: str) -> ManualPage:
    """`inspector man`."""
    return ManualPage(text=text)


def page_lines(paint: Painter, text: str) -> Lines:
    """The page as it is."""
    yield from text.splitlines()


def completion_document(shell: str, text: str) -> CompletionScript:
    """`inspector completion`."""
    return CompletionScript(shell=shell, text=text)


def completion_lines(paint: Painter, shell: str, text: str) -> Lines:
    """The script as it is."""
    yield from text.splitlines()
