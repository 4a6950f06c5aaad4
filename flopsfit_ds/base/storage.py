"""Files that a kill at any moment cannot tear: replaced by rename, with a checksum; JSON lines with a checksum each.

A line of JSON lines is an object whose first member, `crc32`, covers the rest of it, so that any reader of JSON lines
reads the file. Lines of earlier versions, with the checksum before the object, are still read.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flopsfit_ds.base.errors import RecordError, SweepFolderError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FIT_FORMAT, FORECAST_FORMAT = "flopsfit-ds/fit", "flopsfit-ds/forecast"
"""What `format` holds in the JSON of a fit, and of a registered forecast."""
Kind = Literal["folder", "sweep", "empty", "binary", "fit", "forecast", "table", "yaml"]
KIND_WORDS: dict[Kind, str] = {
    "folder": "a folder",
    "sweep": "the folder of a sweep, which status, report and audit take",
    "empty": "empty",
    "binary": "no text",
    "fit": "a fit, which predict, register and report take",
    "forecast": "a registered forecast, which score takes",
    "table": "a table, which fit, audit and report take",
    "yaml": "YAML, as a spec is, which plan and sweep take",
}
"""Completes "it is ..." for people who named one thing where another was meant."""
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
_TAIL_BYTES = 4096  # a line of metrics is some 130 bytes: the last thirty
_Kind = TypeVar("_Kind")


def json_converter(kind: type[_Kind]) -> TypeAdapter[_Kind]:
    """To plain JSON values and back, with every field checked; made at its first use, for it takes its time."""
    return _converter(kind)


@functools.cache
def _converter(kind: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def atomic_write(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file so that a reader, or a kill, meets the old content or the new, never a part.

    Args:
        path: The file.
        content: All of it.
        durable: Wait until it would survive a power cut; without, it survives the end of any process.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
        if durable:
            fsync_folder(path.parent)
    except BaseException as error:  # Ctrl-C among them
        with suppress(OSError):  # a folder that has turned read-only does not even allow this
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from None
        raise


def cannot_write(path: Path, error: OSError) -> SweepFolderError:
    """What a user is told of a write that failed."""
    if error.errno == errno.ELOOP:
        return SweepFolderError(f"{path}: is a symbolic link, and is not written through; remove it")
    remedy = _REMEDIES.get(error.errno or 0, "free space or change output_root")
    return SweepFolderError(f"{path}: cannot be written: {error.strerror}; {remedy}")


def kind_of(path: Path) -> Kind | None:
    """What lies at a path, for messages on something else that was wanted there; None where nothing known does."""
    try:
        if path.is_dir():
            return "sweep" if (path / "plan.json").exists() else "folder"
        content = path.read_bytes() if path.is_file() else None  # a pipe would wait, a device has no end
    except OSError:
        return None
    if content is None or not content.strip():
        return None if content is None else "empty"
    if path.suffix.lower() in (".parquet", ".pq") or content.startswith(b"PAR1"):
        return "table"
    if b"\0" in content or "\N{REPLACEMENT CHARACTER}" in content.decode(errors="replace"):
        return "binary"
    marks: tuple[tuple[str, Kind], ...] = ((FIT_FORMAT, "fit"), (FORECAST_FORMAT, "forecast"))
    for mark, kind in marks:
        if content.lstrip().startswith(b"{") and f'"format": "{mark}"'.encode() in content:
            return kind
    suffix = path.suffix.lower()
    return "table" if suffix in _TABLES else "yaml" if suffix in (".yaml", ".yml") else None


def user_cache_folder(name: str) -> Path:
    """Where this package keeps what it can find out again: `flopsfit-ds/NAME` in the user's cache folder.

    Raises:
        RuntimeError: XDG_CACHE_HOME is not set and the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flopsfit-ds" / name


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` with a checksum over its canonical form, atomically; `durable` as in `atomic_write`."""
    body = json.dumps(value, sort_keys=True, allow_nan=False)
    document = {"crc32": _checksum(body), "content": value}
    atomic_write(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n", durable=durable)


def update_json(path: Path, value: Any, *, durable: bool = True) -> bool:
    """As `write_json`, but a whole file that says the same already is left as it is: of a thousand, few are new.

    Returns:
        Whether the file was written.
    """
    with suppress(FileNotFoundError, RecordError):
        if read_json(path) == value:
            return False
    write_json(path, value, durable=durable)
    return True


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        RecordError: The file is torn or was altered.
        FileNotFoundError: There is none.
    """
    try:
        document = json.loads(path.read_bytes())
        content = document["content"]
        expected = document["crc32"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: torn or no record of a sweep ({error}); the sweep's command writes it anew"
        ) from None
    if _checksum(json.dumps(content, sort_keys=True)) != expected:
        raise RecordError(f"{path}: the checksum does not match: the file was altered after it was written")
    return content


_REMEDIES = {
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EISDIR: "it is a folder, name a file in it",
    errno.ENAMETOOLONG: "shorten it",
}
"""Of writes that no space would help; by errno."""
_LINE_HEAD = b'{"crc32": "'
_LINE_JOIN = b'", '


def _encode_line(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, allow_nan=False)
    return b"".join((_LINE_HEAD, _checksum(body).encode(), _LINE_JOIN, body[1:].encode(), b"\n"))


def _whole_body(line: bytes) -> bytes | None:
    """A line's JSON without its checksum; None where it is torn or was altered."""
    if line.startswith(_LINE_HEAD):
        checksum, _, rest = line[len(_LINE_HEAD) :].partition(_LINE_JOIN)
        body = b"{" + rest
    else:
        checksum, _, body = line.partition(b" ")
    return body if body and checksum == b"%08x" % zlib.crc32(body) else None


def _decode_lines(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """What whole lines hold; parsed as one array, which takes half the time of one after another."""
    bodies = [body for line in lines if (body := _whole_body(line)) is not None]
    return json.loads(b"[" + b",".join(bodies) + b"]")


class JsonLines:
    """An append-only file of JSON lines, a checksum each; a torn or altered line is skipped and counted.

    Attributes:
        path: The file.
        num_damaged: Lines that the last `read` left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_damaged = 0

    def append(self, value: dict[str, Any]) -> None:
        """Add one line, whole: one write call on a file opened for appending; errors as of `extend`."""
        self.extend([value])

    def extend(self, values: Sequence[dict[str, Any]]) -> None:
        """Add lines in one write call.

        Raises:
            SweepFolderError: The file cannot be written, or not all of the lines; the next line starts anew.
        """
        try:
            self._extend(b"".join(map(_encode_line, values)))
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _extend(self, lines: bytes) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # the line before was torn by a kill
            while lines := lines[os.write(descriptor, lines) :]:
                pass  # only a disk that has just become full takes a part; the next call then says so
        finally:
            os.close(descriptor)

    def replace(self, values: Sequence[dict[str, Any]]) -> None:
        """Write the file anew, atomically."""
        atomic_write(self.path, b"".join(map(_encode_line, values)))

    def read(self) -> list[dict[str, Any]]:
        """All undamaged lines, in order; an empty list where there is no file."""
        self.num_damaged = 0
        if not self.path.exists():
            return []
        lines = [line for line in self.path.read_bytes().split(b"\n") if line]
        values = _decode_lines(lines)
        self.num_damaged = len(lines) - len(values)
        return values

    def last(self) -> dict[str, Any] | None:
        """The last undamaged line among the last few, without reading the whole file; None where there is none."""
        return next(iter(reversed(self.tail())), None)

    def tail(self) -> list[dict[str, Any]]:
        """The undamaged ones of the last few lines, in order, without reading the whole file."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = stream.read().split(b"\n")
        except FileNotFoundError:
            return []
        return _decode_lines(lines)
