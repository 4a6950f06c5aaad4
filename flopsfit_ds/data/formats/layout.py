"""Where the ids of a file lie and how they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["raw", "npy", "llm.c", "megatron"]

BYTES_PER_ID = {"uint8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "int64": 8}
"""Types of ids that can be read, all little-endian, by numpy's names."""
ARRAY_CODES = {"uint8": "B", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "int64": "q"}
"""The same for Python's `array`."""


@dataclass(frozen=True)
class Layout:
    """How a file stores its ids.

    Attributes:
        format: Kind of file.
        dtype: Type of an id.
        offset: Bytes before the first id.
        num_ids: Ids in the file.
        known_by: What says so, for people.
        odd: What is odd of the ids and was taken as it is, for people.
    """

    format: Format
    dtype: str
    offset: int
    num_ids: int
    known_by: str
    odd: tuple[str, ...] = ()
