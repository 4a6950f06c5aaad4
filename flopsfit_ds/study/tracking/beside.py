"""The sweep's side: one process for each tracker, begun with the sweep, ended after its report."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.engine.fork.child import scrub_environment
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.study.tracking.state import TrackerState, folder_of

_LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
_LAST_SECONDS = 120.0
"""For what a tracker still has to send when the sweep has ended: an upload of a report, a slow database."""
_LAST_SECONDS_STOPPED = 10.0
"""The same where the sweep was stopped: somebody waits, and the next session sends the rest."""


class Tracking:
    """Tells the trackers of a spec about its sweep, as a context around training, fit and report.

    Args:
        plan: The sweep.
        tell: Told in a sentence what went wrong with a tracker; the sweep goes on.
    """

    def __init__(self, plan: SweepPlan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._folder = SweepFolder(plan.folder)
        self._tell = tell
        self._names: list[str] = list(dict.fromkeys(plan.spec.trackers))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Tracking:
        return self

    def start(self) -> None:
        """Begin to tell them; called where the sweep's folder is there, and by the process that leads the sweep."""
        for name in [name for name in self._names if name not in self._processes]:
            library = _LIBRARIES[name]
            if importlib.util.find_spec(library) is None:
                self._names.remove(name)
                self._report(
                    name, f"{library} is not installed: pip install 'flopsfit-ds[trackers]', or take it out of trackers"
                )
                continue
            try:
                self._processes[name] = self._begun(name)
            except OSError as error:
                self._names.remove(name)
                self._report(name, f"its process cannot be started: {error.strerror or error}")

    def _begun(self, name: str) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        scrub_environment(environment)
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        folder = folder_of(self._folder)
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(  # a session of its own: Ctrl-C is for the sweep
                _command(name, self._folder.path),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and any(self._has_news(name) for name in self._names):
            self.start()
        ended = time.monotonic() + (_LAST_SECONDS if error is None else _LAST_SECONDS_STOPPED)
        for process in self._processes.values():
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
        for name, process in self._processes.items():
            try:
                process.wait(max(0.1, ended - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                if error is None:
                    self._report(name, f"it had not ended {_LAST_SECONDS:g} s after the sweep, and was stopped")
                continue
            if process.returncode:
                self._report(name, self._why(name))

    def _has_news(self, name: str) -> bool:
        """Whether a tracker was not yet told all of a sweep that has ended."""
        if name in self._processes:
            return False
        state = TrackerState.read(self._folder, name)
        ended = (state.runs.get(run.run_id) for run in self._plan.runs)
        return not all(run is not None and run.finished_at is not None for run in ended)

    def _why(self, name: str) -> str:
        state = TrackerState.read(self._folder, name)
        log = folder_of(self._folder) / f"{name}.log"
        return f"{state.problem or 'it ended by itself'}; the sweep is whole without it, see {log}"

    def _report(self, name: str, problem: str) -> None:
        """Say it, and note it in the sweep's events."""
        self._tell(f"trackers: {name}: {problem}")
        try:
            self._folder.log_event("tracker", name=name, problem=problem)
        except (FlopsfitError, OSError) as error:
            logging.getLogger(__name__).warning("%s", error)


def _command(name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "flopsfit_ds.study.tracking", name, str(folder.absolute())]
