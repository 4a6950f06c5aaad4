"""Text from files and other programs, made fit to be shown: cut short, and without anything a terminal would obey."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence

_LONGEST = 80
_UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Control characters; such as change the direction of text; halves of a character; separators of lines."""


def shown(value: object, longest: int = _LONGEST) -> str:
    """A value as Python writes it, on one line, cut short; made without writing all of a large one.

    Args:
        value: Plain data.
        longest: Characters that are kept.
    """
    text = _write(value, longest, 0)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _write(value: object, longest: int, depth: int) -> str:
    """At least the first `longest` characters of `repr(value)`."""
    if isinstance(value, (str, bytes)):
        return repr(value[: longest + 1])
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1000:
        return f"an integer of about {value.bit_length() * 0.30103:.0f} digits"
    if not isinstance(value, (dict, list, tuple)):
        return repr(value)
    if depth > 4:
        return "..."
    parts: list[str] = []
    length = 0
    for item in value.items() if isinstance(value, dict) else value:
        if isinstance(value, dict):
            parts.append(f"{_write(item[0], longest, depth + 1)}: {_write(item[1], longest, depth + 1)}")
        else:
            parts.append(_write(item, longest, depth + 1))
        length += len(parts[-1])
        if length > longest:
            break
    left, right = {dict: "{}", list: "[]"}.get(type(value), "()")
    return f"{left}{', '.join(parts)}{',' if left == '(' and len(parts) == 1 else ''}{right}"


def printable(text: str) -> str:
    """Text in which a terminal finds nothing to obey: control characters as `\\\\x1b`; new lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each if each in "\n\t" or unicodedata.category(each) not in _UNSHOWN else ascii(each)[1:-1] for each in text
    )


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A plain table for notebooks; every text is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
