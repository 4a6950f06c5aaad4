"""Sentences and warnings as wide as the terminal; what goes into a file or a pipe is not broken."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import typer


NARROW = 80
"""Columns, below which names of options would be cut in typer's panels; plain help breaks lines instead."""


class _Warning(Protocol):
    @property
    def code(self) -> str: ...

    @property
    def message(self) -> str: ...


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none, such as a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say(text: str) -> None:
    """Print a line; on a terminal, broken between words, what follows indented further, a path left whole."""
    width = terminal_width()
    if width is None or len(text) <= width:
        print(text)
        return
    indent = " " * (len(text) - len(text.lstrip()))
    lines = textwrap.wrap(
        text.strip(), max(width, 20), initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    print("\n".join(lines))


def narrow_help(app: typer.Typer) -> Any:
    """The command of an app whose plain help is as narrow as the terminal: typer's own takes 50 columns."""
    from typer.main import get_command

    width = shutil.get_terminal_size().columns
    group: Any = get_command(app)

    class Formatter(group.context_class.formatter_class):
        def __init__(self, *_: Any, **options: Any) -> None:
            super().__init__(**{**options, "width": width})

        def write_dl(self, rows: Any, *_: Any) -> None:
            super().write_dl(rows, col_max=width // 3)

    class Context(group.context_class):
        formatter_class = Formatter

    for command in (group, *group.commands.values()):
        command.context_class = Context
    return group


def say_warnings(warnings: Iterable[_Warning], head: str = "warning") -> None:
    """One line a kind: what was seen first, and how many more there are of it."""
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        kinds.setdefault(warning.code, []).append(warning.message)
    for code, messages in kinds.items():
        more = "" if len(messages) == 1 else f" (and {len(messages) - 1} more of this kind, which --json lists)"
        say(f"{head} {code}: {messages[0]}{more}")
