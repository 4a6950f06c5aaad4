"""Whether what losses are measured on stands in what is trained on too: passages of it, looked for byte by byte."""

from __future__ import annotations

import mmap
from pathlib import Path

from flopsfit_ds.data.formats.layout import BYTES_PER_ID, Layout

_PASSAGES = 8
_PASSAGE_IDS = 64
"""So long that prose or code hardly repeats it by chance; a licence or a table may."""
_TELLING = _PASSAGES // 2
"""Passages found that are no licence: half."""
_LOOKED_THROUGH = 1 << 26
"""Bytes that are looked through from the start, and before the end: 32 MiB for 8 passages took .013 s on one core."""


def note_repeated_end(path: Path, layout: Layout, heldout_tokens: int) -> tuple[str, ...]:
    """What to say of a file whose held-out end repeats what comes before it; nothing of any other.

    Args:
        path: The file of ids.
        layout: How they are stored.
        heldout_tokens: The last so many are held out.
    """
    width = BYTES_PER_ID[layout.dtype]
    trained = layout.num_ids - heldout_tokens
    if trained < _PASSAGE_IDS or heldout_tokens < _PASSAGES * _PASSAGE_IDS:
        return ()
    border = layout.offset + trained * width
    apart = (heldout_tokens - _PASSAGE_IDS) // (_PASSAGES - 1)
    parts = (
        (layout.offset, min(border, layout.offset + _LOOKED_THROUGH)),
        (max(layout.offset, border - _LOOKED_THROUGH), border),
    )
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = 0
        for number in range(_PASSAGES):
            start = border + number * apart * width
            passage = content[start : start + _PASSAGE_IDS * width]
            found += any(content.find(passage, *part) >= 0 for part in parts)
    if found < _TELLING:
        return ()
    return (
        f"{path.name}: {found} of {_PASSAGES} passages of {_PASSAGE_IDS} ids, taken from the {heldout_tokens:,} that "
        "are held out, stand in what is trained on as well: losses are of what was seen; cut the copies, or name a "
        "file that is not trained on in heldout",
    )
