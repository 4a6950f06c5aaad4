"""Results of simulations on disk, by content: what was asked, and the code and versions that answered."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import pickle
import tempfile
import threading
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from flopsfit_ds.base.presets import wants_stock_zero3
from flopsfit_ds.base.storage import user_cache_folder

_logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "deepspeed", "accelerate")
"""What a simulation runs, and what its result depends on."""
_FOLDERS = ("simulate", "train", "memory", "model", "base/presets.py", "plan/ds_config.py")


def cache_folder() -> Path:
    """Where results are kept: `flopsfit-ds/memory` in the user's cache folder.

    Raises:
        RuntimeError: XDG_CACHE_HOME is not set and the user has no home.
    """
    return user_cache_folder("memory")


def content_key(*parts: Any) -> str:
    """Hash of what a result depends on: the parts, this package's simulation and training code, and the libraries."""
    digest = hashlib.sha256(_code_version().encode())
    digest.update(b"stock" if wants_stock_zero3() else b"")
    for part in parts:
        digest.update(_text(part).encode())
    return digest.hexdigest()[:32]


def load_result(key: str) -> dict[str, Any] | None:
    """The result stored under a key; None where there is none, where it is torn, or where no cache can be read."""
    try:
        return json.loads((cache_folder() / f"{key}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # torn: neither JSON nor, perhaps, UTF-8
        return None
    except (OSError, RuntimeError) as error:
        _warn_once(str(error))
        return None


def store_result(key: str, result: dict[str, Any]) -> None:
    """Keep a result; a folder that cannot be written is warned of and costs the next call time, nothing else."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False, encoding="utf-8") as stream:
            json.dump(result, stream)
        Path(stream.name).replace(folder / f"{key}.json")
    except (OSError, RuntimeError) as error:
        _warn_once(str(error))


_warned = threading.Event()


def _warn_once(reason: str) -> None:
    if not _warned.is_set():
        _warned.set()
        _logger.warning(
            "simulations of memory are not kept (%s): each is done again; XDG_CACHE_HOME names a folder for them",
            reason,
        )


def _text(part: Any) -> str:
    if hasattr(part, "identity"):  # a user's own class, which has no content that shows
        return f"{type(part).__name__} {part.identity}"
    if is_dataclass(part) and not isinstance(part, type):
        return (
            f"{type(part).__module__}.{type(part).__qualname__}{json.dumps(asdict(part), sort_keys=True, default=repr)}"
        )
    if isinstance(part, (dict, list, tuple, str, int, float, bool, type(None))):
        return json.dumps(part, sort_keys=True, default=repr)
    return hashlib.sha256(pickle.dumps(part)).hexdigest()


@functools.lru_cache(maxsize=1)
def _code_version() -> str:
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for name in _FOLDERS:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    versions = [f"{library} {importlib.metadata.version(library)}" for library in LIBRARIES]
    return digest.hexdigest() + ", ".join(versions)
