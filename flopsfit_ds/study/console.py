"""The console that commands draw tables and bars on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from rich import console
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from flopsfit_ds.base.text import printable


class Console(console.Console):
    """A console of rich on which text from files is shown, and never obeyed: rich passes escape sequences on."""

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does, with control characters of texts made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    @property
    def file(self) -> IO[str]:
        """Where it writes to: below all streams that rewrite what others print, of which rich looks below one alone."""
        found = super().file
        while (below := getattr(found, "rich_proxied_file", None)) is not None:
            found = below
        return found

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def tell(self, sentence: str | Text, *, style: str | None = None, markup: bool = False) -> None:
        """Say a sentence: on a terminal broken between words, elsewhere as one line.

        Args:
            sentence: What is said; one with a word longer than the terminal, such as a path, is left to the terminal.
            style: Of all of it.
            markup: Whether its square brackets are rich's.
        """
        words = (sentence.plain if isinstance(sentence, Text) else sentence).split()
        whole = not self.is_terminal or any(len(word) > self.width for word in words)
        self.print(sentence, style=style, markup=markup, highlight=False, soft_wrap=whole)

    def warn(self, sentence: str) -> None:
        """Say what should be known, as a line of its own."""
        self.tell(f"[yellow]warning:[/yellow] {escape(sentence)}", markup=True)
