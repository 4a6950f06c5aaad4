"""What commands write to: streams that pass on no control character of a file, and whose reader may leave."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from flopsfit_ds.base.text import printable


class _Stream:
    """A stream as `print` and others use it; consoles, which escape for themselves, write below it."""

    def __init__(self, below: Any) -> None:
        self.rich_proxied_file = below  # by this name rich finds the stream that it may write its own codes to

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


class _Lasting:
    """A stream whose reader may leave, or whose disk may fill: from then on, what is written is dropped.

    Attributes:
        error: Why nothing is written any more; None so far.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError, ValueError):  # from now on, and for what is buffered still
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def see_to_descriptors() -> None:
    """Open what the caller has closed of standard input, output and error: else the next file takes their number."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Meanwhile, standard output and error show control characters of what is written as text."""
    out, error = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stream(out), _Stream(_Lasting(error))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, error


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Meanwhile, what cannot be written to standard output is dropped; at the end that is said once."""
    stream = sys.stdout
    lasting = _Lasting(stream.rich_proxied_file if isinstance(stream, _Stream) else stream)
    sys.stdout = _Stream(lasting)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            lasting.flush()
        sys.stdout = stream
        if lasting.error is not None:
            print(
                f"standard output could not be written any more ({lasting.error.strerror}); the sweep went on",
                file=sys.stderr,
            )
