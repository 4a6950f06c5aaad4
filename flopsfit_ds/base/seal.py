"""A sweep's key, and what is sealed with it: bytes that only a process of the same user and sweep can have written."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import SweepFolderError

_KEY_BYTES = 32  # as long as the digest of SHA-256, beyond which RFC 2104 sees no gain
_OTHERS = 0o077
"""Bits of a mode by which group or world could read or write."""


@dataclass(frozen=True)
class Seal:
    """Signs and checks with one key.

    Attributes:
        key: Secret; never shown, logged or put on a command line.
        made_at: Seconds since the epoch, of the key: what lies in a folder since before was written without one.
    """

    key: bytes = field(repr=False)
    made_at: float = 0.0

    def sign(self, name: str, content: bytes) -> str:
        """Digest of a content under a name: a content that was signed under another one does not pass for it."""
        return hmac.new(self.key, name.encode() + b"\0" + content, hashlib.sha256).hexdigest()

    def matches(self, name: str, content: bytes, signature: object) -> bool:
        """Whether a digest is that of this content under this name; anything may be given as one."""
        return isinstance(signature, str) and hmac.compare_digest(
            self.sign(name, content).encode(), signature.encode(errors="replace")
        )

    def wrap(self, name: str, message: Mapping[str, Any]) -> str:
        """A message as text, with its digest."""
        body = json.dumps(message)
        return f"{self.sign(name, body.encode())} {body}"

    def unwrap(self, name: str, data: bytes) -> dict[str, Any] | None:
        """The message that `wrap` was given; None where these bytes are not its work."""
        signature, _, body = data.partition(b" ")
        if not self.matches(name, body, signature.decode(errors="replace")):
            return None
        return json.loads(body)


def sweep_seal(folder: Path) -> Seal:
    """The seal of a sweep's folder; whichever process comes first makes its key, `FOLDER/key`, readable by its user.

    Raises:
        SweepFolderError: The key is another user's, others can read it, or it cannot be read or made.
    """
    path = folder / "key"
    try:
        with suppress(FileNotFoundError):
            return _read_key(path)
        draft = path.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(_KEY_BYTES).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            with suppress(FileExistsError):  # another was quicker
                os.link(draft, path)
        except OSError:  # a file system without hard links: the first to rename wins, and all read what is there
            if not path.exists():
                draft.rename(path)
        draft.unlink(missing_ok=True)
        return _read_key(path)
    except OSError as error:
        raise SweepFolderError(f"{path}: the sweep's key cannot be read or made: {error.strerror}") from None


def _read_key(path: Path) -> Seal:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        text = os.read(descriptor, 4 * _KEY_BYTES)
    finally:
        os.close(descriptor)
    if status.st_uid != os.geteuid():
        raise SweepFolderError(
            f"{path}: belongs to user {status.st_uid}, this is user {os.geteuid()}; start as that user, or `chown` the "
            "folder"
        )
    if status.st_mode & _OTHERS:
        raise SweepFolderError(f"{path}: others can read or write it; if nobody did: chmod 600 {path}")
    try:
        key = bytes.fromhex(text.decode())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise SweepFolderError(f"{path}: is no key of a sweep; remove it, and a new one is made")
    return Seal(key, status.st_mtime)
