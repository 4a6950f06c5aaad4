"""A process that tokenises: it is told pieces on its standard input, a line each, and answers on its standard output.

Started by `flopsfit_ds.train.data.prepare.pool`; it ends when its input does, or its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.base.storage import json_converter
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.sources.reading import Piece
from flopsfit_ds.train.data.prepare.encode import Encoder
from flopsfit_ds.train.data.prepare.parts import write_part


@dataclass(frozen=True)
class Job:
    """What a worker is told first.

    Attributes:
        corpus: Whose pieces it reads.
        dtype: Of the ids.
        vocab_size: Of the model.
        folder: Where parts are written.
        parent: Pid of who started it.
    """

    corpus: Corpus
    dtype: str
    vocab_size: int
    folder: str
    parent: int


def place_of(folder: Path, number: int) -> Path:
    """Where the part of a piece lies, without a suffix."""
    return folder / f"{number:06d}"


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    job = json_converter(Job).validate_json(sys.stdin.readline())

    def see_parent() -> None:
        if os.getppid() != job.parent:
            raise SystemExit

    encoder: Encoder | None = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {"piece": order["number"]}
        try:
            encoder = encoder or Encoder(job.corpus, job.dtype, job.vocab_size)
            piece = Piece(**order["piece"])
            place = place_of(Path(job.folder), order["number"])
            answer["part"] = asdict(write_part(encoder, piece, place, see_parent))
        except FlopsfitError as error:
            answer["error"] = [type(error).__name__, str(error)]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
