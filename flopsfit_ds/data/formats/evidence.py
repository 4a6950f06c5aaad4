"""How ids are stored in a file that does not say it: read as each type, only the true one gives plausible ids.

A file of narrow ids read as wide ones gives numbers beyond any vocabulary. A file of wide ids read as narrow ones gives
a row in which every second number is 0, because vocabularies are small beside what 32 bits can hold. Neither is
certain of a file with hardly any different ids; such a file is refused and its type has to be given.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import ARRAY_CODES, BYTES_PER_ID

_PLACES = 64  # with the next 256 KiB of a file: 65,536 ids of two or four bytes at least
_BYTES_A_PLACE = 4096  # one page of a file system
_DIFFERENT_IDS = 4
"""Fewer different ids than these prove no type."""
_CONTRADICTING_IDS = 16
"""A type that the user gave is doubted only where so many different ids speak against it."""
_ENOUGH_IDS = 32
"""Where a narrower type fits too: so many zeros in a row at every second place are no chance."""
_ENTROPY_BITS = 0.5
"""By which a high byte must vary more than the low one to be the low one, swapped. Of 50,257 ids drawn by Zipf's law
the low byte has 7.7 bits and the high one 4.3; where all ids are as frequent, 8.0 and 7.6, and no order is told."""
_CANDIDATES = ("uint8", "uint16", "int32", "int64")


@dataclass(frozen=True)
class _Reading:
    """What the samples come to, read as a type.

    Attributes:
        dtype: The type.
        swapped: Read as big-endian.
        ids: The samples.
        different: Different ids among them.
    """

    dtype: str
    swapped: bool
    ids: array
    different: int

    @property
    def width(self) -> int:
        return BYTES_PER_ID[self.dtype]

    @property
    def name(self) -> str:
        return f"{'big-endian ' if self.swapped else ''}{self.dtype}"

    def fits(self, limit: int) -> bool:
        return min(self.ids) >= 0 and max(self.ids) < min(limit, 1 << 8 * self.width)


def sample_blocks(path: Path, offset: int, num_bytes: int) -> list[bytes]:
    """Blocks of the ids, evenly spread, first and last included, each beginning at a multiple of 8 bytes."""
    length = num_bytes - offset
    with path.open("rb") as stream:
        if length <= _PLACES * _BYTES_A_PLACE:
            stream.seek(offset)
            return [stream.read(length)]
        blocks = []
        for place in range(_PLACES):
            stream.seek(offset + (length - _BYTES_A_PLACE) * place // (_PLACES - 1) // 8 * 8)
            blocks.append(stream.read(_BYTES_A_PLACE))
    return blocks


def find_dtype(path: Path, blocks: Sequence[bytes], vocab_size: int) -> str:
    """The type of the ids in a file without a header.

    Args:
        path: The file, for messages.
        blocks: Samples of it.
        vocab_size: Of the model.

    Raises:
        DataError: No type gives ids of the vocabulary, more than one does, or the ids are big-endian.
    """
    readings = _readings(blocks)
    fitting = [r for r in readings if r.fits(vocab_size) and vocab_size <= 1 << 8 * r.width]
    if not fitting:
        seen = ", ".join(f"{r.dtype} {min(r.ids)} to {max(r.ids)}" for r in readings if not r.swapped and r.width > 1)
        raise DataError(
            f"data.path: {path}: of no type are its ids below model.vocab_size {vocab_size} (read as {seen}); set "
            "model.vocab_size, or write data.dtype"
        )
    chosen = _meant(fitting, _DIFFERENT_IDS)
    if chosen is None:
        names = " and as ".join(reading.name for reading in fitting)
        raise DataError(
            f"data.path: {path} does not show the type of its ids: they are plausible as {names}; write data.dtype: "
            f"{' or '.join(dict.fromkeys(reading.dtype for reading in fitting if not reading.swapped))}"
        )
    if chosen.swapped:
        raise _big_endian(path, chosen)
    return chosen.dtype


def check_dtype(path: Path, blocks: Sequence[bytes], dtype: str, vocab_size: int) -> None:
    """See that the ids of a file do not contradict their type.

    Raises:
        DataError: Samples are negative or beyond the vocabulary, or every second one is the upper half of another.
    """
    stated = _reading(blocks, dtype, swapped=False)
    limit = min(vocab_size, 1 << 8 * stated.width)
    wider = [r for r in _readings(blocks) if r.width > stated.width and r.fits(limit)]
    if wider and (meant := _meant([stated, *wider], _CONTRADICTING_IDS)) not in (None, stated):
        assert meant is not None
        if meant.swapped:
            raise _big_endian(path, meant)
        raise DataError(
            f"data.path: {path} holds {meant.dtype} (up to {max(meant.ids)}): read as data.dtype: {dtype}, every "
            f"second id is an upper half, 0; write data.dtype: {meant.dtype}, or leave it out"
        )
    if min(stated.ids) >= 0 and max(stated.ids) < vocab_size:
        return
    swapped = _reading(blocks, dtype, swapped=True)
    if stated.width > 1 and swapped.fits(vocab_size):
        raise _big_endian(path, swapped)
    wrong = min(stated.ids) if min(stated.ids) < 0 else max(stated.ids)
    remedy = "" if wrong < 0 else f"set model.vocab_size to {wrong + 1} or more, or "
    raise DataError(
        f"data.path: {path}, read as {dtype}, holds id {wrong}, which is {'negative' if wrong < 0 else 'beyond'} "
        f"{'' if wrong < 0 else f'model.vocab_size {vocab_size}'}; {remedy}check data.dtype".replace(" ;", ";")
    )


def _big_endian(path: Path, reading: _Reading) -> DataError:
    letter = {"uint16": "u2", "int16": "i2", "uint32": "u4", "int32": "i4", "int64": "i8"}[reading.dtype]
    return DataError(
        f"data.path: {path} holds big-endian {reading.dtype} ids (up to {max(reading.ids)}); write them little-endian: "
        f"numpy.fromfile(path, '>{letter}').astype('<{letter}').tofile(new_path)"
    )


def _readings(blocks: Sequence[bytes]) -> list[_Reading]:
    """All that have at least one id."""
    every = [
        _reading(blocks, dtype, swapped=swapped)
        for dtype in _CANDIDATES
        for swapped in ((False, True) if BYTES_PER_ID[dtype] > 1 else (False,))
    ]
    return [reading for reading in every if reading.ids]


def _reading(blocks: Sequence[bytes], dtype: str, *, swapped: bool) -> _Reading:
    ids = array(ARRAY_CODES[dtype])
    for block in blocks:
        ids.frombytes(block[: len(block) // ids.itemsize * ids.itemsize])
    if swapped != (sys.byteorder == "big"):
        ids.byteswap()
    return _Reading(dtype, swapped, ids, len(set(ids)))


def _meant(fitting: Sequence[_Reading], different: int) -> _Reading | None:
    """Of readings that all give plausible ids the true one; None where that is not clear.

    Where a wide type fits, the ids of each narrower one are 0 at every second place: they are halves.
    """
    width = max(reading.width for reading in fitting)
    widest = [reading for reading in fitting if reading.width == width]
    if any(reading.width < width for reading in fitting):
        proven = widest[0].different >= different and len(widest[0].ids) >= _ENOUGH_IDS
        return widest[0] if proven else None
    if len(widest) == 1:
        return widest[0]
    low, high = (_entropy(widest[0].ids.tobytes()[place::width]) for place in (0, width - 1))
    return None if high > low + _ENTROPY_BITS else widest[0]


def _entropy(values: bytes) -> float:
    """Bits a byte: of an id's bytes the low ones vary most."""
    total = len(values)
    return -sum(count / total * math.log2(count / total) for count in Counter(values).values())
