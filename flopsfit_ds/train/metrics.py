"""The metrics of a run, a line a step, written in batches so that small steps stay fast."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flopsfit_ds.base.storage import JsonLines
from flopsfit_ds.records import RunFolder

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FLUSH_EVERY_SECONDS = 1.0  # a kill loses so much of the log, and a resumed run writes it again


class Waiting:
    """Counts the time that a loop waits for its items.

    Attributes:
        seconds: So far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, timed from the moment that one is asked for to the moment that it is there."""
        remaining = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(remaining)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - asked
            yield item


class MetricsLog:
    """Appends to a run's `metrics.jsonl`; after a resume, lines beyond the checkpoint are taken back first.

    Args:
        run_folder: The run's.
        keep_steps: Steps whose lines are kept.
        enabled: Whether this rank writes.
        peak_memory: Gives the largest bytes allocated so far; asked once for each batch of lines. None where the
            device keeps no count.
    """

    def __init__(
        self, run_folder: Path, keep_steps: int, enabled: bool, peak_memory: Callable[[], int] | None = None
    ) -> None:
        self._peak_memory = peak_memory
        self._lines: JsonLines | None = RunFolder(run_folder).metrics if enabled else None
        self._waiting: list[dict[str, Any]] = []
        self._waited_share: float | None = None
        self._last_flush = time.monotonic()
        if self._lines is not None:
            kept = [line for line in self._lines.read() if line["step"] <= keep_steps]
            if self._lines.num_damaged:
                _log.warning("%s: %d damaged lines were dropped", self._lines.path, self._lines.num_damaged)
            self._lines.replace(kept)

    def log(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        gradient_norm: Any,
        seconds: float,
        waited_share: float | None = None,
    ) -> None:
        """Note one step.

        Args:
            step: Its number, from 1.
            loss: Of the global batch.
            learning_rate: That it was taken at.
            gradient_norm: A number, a scalar tensor, or None where there is none. One that is not finite is noted as
                None: the run is about to end as diverged, and JSON has no such number.
            seconds: Of training so far.
            waited_share: Of this attempt's time so far, waiting for samples; kept of the newest step alone.
        """
        if self._lines is None:
            return
        self._waited_share = waited_share
        line = {"step": step, "loss": loss, "learning_rate": learning_rate, "seconds": round(seconds, 4)}
        norm = math.nan if gradient_norm is None else float(gradient_norm)
        line["gradient_norm"] = norm if math.isfinite(norm) else None
        self._waiting.append(line)
        if time.monotonic() - self._last_flush > _FLUSH_EVERY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._lines is not None and self._waiting:
            if self._peak_memory is not None:
                self._waiting[-1]["memory"] = self._peak_memory()
            if self._waited_share is not None:
                self._waiting[-1]["waited_share"] = round(self._waited_share, 4)
            self._lines.extend(self._waiting)
        self._waiting = []
        self._last_flush = time.monotonic()
