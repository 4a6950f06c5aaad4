"""The console that commands draw tables and bars on."""

from __future__ import annotations

from collections.abc import Iterable

from rich import console
from rich.markup import escape
from rich.segment import Segment

from flopsfit_ds.base.text import printable


class Console(console.Console):
    """A console of rich on which text from files is shown, and never obeyed: rich passes escape sequences on."""

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does, with control characters of texts made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def warn(self, sentence: str) -> None:
        """Say what should be known, as a line of its own."""
        self.print(f"[yellow]warning:[/yellow] {escape(sentence)}", highlight=False, soft_wrap=True)
