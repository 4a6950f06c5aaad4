"""Sentences and warnings as wide as the terminal; what goes into a file or a pipe is not broken."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Protocol


class _Warning(Protocol):
    @property
    def code(self) -> str: ...

    @property
    def message(self) -> str: ...


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none, such as a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say(text: str) -> None:
    """Print a line; on a terminal, broken between words, with what follows indented further than its beginning."""
    width = terminal_width()
    if width is None or len(text) <= width:
        print(text)
        return
    indent = " " * (len(text) - len(text.lstrip()))
    lines = textwrap.wrap(
        text.strip(), max(width, 20), initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )
    print("\n".join(lines))


def say_warnings(warnings: Iterable[_Warning], head: str = "warning") -> None:
    """One line a kind: what was seen first, and how many more there are of it."""
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        kinds.setdefault(warning.code, []).append(warning.message)
    for code, messages in kinds.items():
        more = "" if len(messages) == 1 else f" (and {len(messages) - 1} more of this kind, which --json lists)"
        say(f"{head} {code}: {messages[0]}{more}")
