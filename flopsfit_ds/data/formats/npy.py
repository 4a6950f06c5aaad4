"""numpy's `.npy` files (format of NEP 1)."""

from __future__ import annotations

import ast
import struct
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.formats.layout import BYTES_PER_ID, Layout

MAGIC = b"\x93NUMPY"
_DTYPES = {"|u1": "uint8", "<u2": "uint16", "<i2": "int16", "<u4": "uint32", "<i4": "int32", "<i8": "int64"}


def read_npy(path: Path, num_bytes: int) -> Layout:
    """What the header of an array of ids says.

    Raises:
        DataError: It is damaged, or tells of anything but one row of little-endian integers that is all there.
    """
    with path.open("rb") as stream:
        magic = stream.read(8)
        if magic[:6] != MAGIC or len(magic) < 8:
            raise DataError(
                f"data.path: {path} is no .npy file: it does not begin with numpy's magic bytes; a bare row of ids "
                "takes the suffix .bin"
            )
        length_format = "<H" if magic[6] == 1 else "<I"
        length_bytes = stream.read(struct.calcsize(length_format))
        try:
            (length,) = struct.unpack(length_format, length_bytes)
            header = ast.literal_eval(stream.read(length).decode("latin1"))
            kind, shape = header["descr"], header["shape"]
            dimensions = len(shape)
        except (struct.error, ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
            raise DataError(f"data.path: {path}: its .npy header is damaged; write the array again") from None
        offset = stream.tell()
    if not isinstance(kind, str) or kind not in _DTYPES or dimensions != 1 or not isinstance(shape[0], int):
        raise DataError(
            f"data.path: {path} holds {kind} of shape {shape}; it takes one row of uint8, or of little-endian uint16, "
            "int32, uint32 or int64, ids: save ids.ravel().astype('<u4')"
        )
    dtype, count = _DTYPES[kind], shape[0]
    expected = offset + count * BYTES_PER_ID[dtype]
    if count <= 0 or num_bytes < expected:
        raise DataError(f"data.path: {path} is empty or cut short: {num_bytes} bytes for {count} ids of {dtype}")
    if num_bytes > expected:
        raise DataError(
            f"data.path: {path} has {num_bytes - expected} bytes behind the {count} ids of {dtype} that its header "
            "tells of; save all ids as one array"
        )
    return Layout("npy", dtype, offset, count, "its .npy header")
