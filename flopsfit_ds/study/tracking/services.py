"""One class for each tracker: how a run is opened in it through Accelerate's own trackers, and where a page goes."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_PROJECT = "flopsfit-ds"
"""Where a tracker has projects above groups and the environment names none."""
_MLFLOW_BATCH = 1000
"""Values that MLflow takes in one call."""


class Told(NamedTuple):
    """What a tracker is told of one step: numbers by name."""

    step: int
    values: dict[str, float]


class Service(ABC):
    """A tracker, for the runs of one sweep.

    Attributes:
        one_at_a_time: Whether its library knows only one open run in a process.
    """

    one_at_a_time = False

    def __init__(self, sweep: str, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder

    @abstractmethod
    def tracker(self, run_id: str, name: str, config: dict[str, Any], handle: str | None) -> GeneralTracker:
        """Accelerate's tracker of a run, not started.

        Args:
            run_id: Of the sweep.
            name: For people; no other run of the sweep has it.
            config: What is known of the run before it begins.
            handle: What `handle_of` said in an earlier session; None for a new run.
        """

    def configure(self, tracker: GeneralTracker, config: dict[str, Any]) -> None:
        """Tell a new run's configuration where `tracker` did not."""
        tracker.store_init_configuration(config)

    def handle_of(self, tracker: Any) -> str | None:
        """By what the run is found again, where the tracker gives names itself."""
        return None

    def log(self, tracker: Any, rows: Sequence[Told]) -> None:
        """Tell steps of a run, in their order."""
        for step, values in rows:
            tracker.log(values, step=step)

    @abstractmethod
    def send_report(self, tracker: Any, page: Path, answer: str) -> None:
        """Keep the report's page in the run of the sweep itself, or say where it lies."""


class TensorBoard(Service):
    """Event files in the sweep's folder, a folder a run; it has no artifacts, and is told the answer as text."""

    def tracker(self, run_id: str, name: str, config: dict[str, Any], handle: str | None) -> GeneralTracker:
        """See `Service`."""
        from accelerate.tracking import TensorBoardTracker

        return TensorBoardTracker(name, self.folder / "tensorboard")

    def send_report(self, tracker: Any, page: Path, answer: str) -> None:
        """See `Service`."""
        tracker.log({"report": f"{answer}\n\n{page}"}, step=0)


class WeightsAndBiases(Service):
    """Weights & Biases; WANDB_MODE=offline keeps all in the sweep's folder, to be sent by `wandb sync`."""

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb-data"))  # artifacts that wait: else in the home

    def tracker(self, run_id: str, name: str, config: dict[str, Any], handle: str | None) -> GeneralTracker:
        """See `Service`."""
        from accelerate.tracking import WandBTracker

        return WandBTracker(
            os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=os.environ.get("WANDB_DIR", str(self.folder)),
            group=self.sweep,
            name=name,
            id=f"{self.sweep}-{run_id}"[-64:],
            resume="allow",
            reinit="create_new",  # several runs of a sweep are open side by side
            config=config,
        )

    def configure(self, tracker: GeneralTracker, config: dict[str, Any]) -> None:
        """Done when it was opened: Accelerate would tell it to whatever run the library takes for the current one."""

    def send_report(self, tracker: Any, page: Path, answer: str) -> None:
        """See `Service`."""
        import wandb  # pyright: ignore[reportMissingImports]

        artifact = wandb.Artifact(f"{self.sweep}-report", type="report", description=answer)
        artifact.add_file(str(page))
        tracker.tracker.log_artifact(artifact)


class MlFlow(Service):
    """MLflow; where MLFLOW_TRACKING_URI names no server, a database in the sweep's folder."""

    one_at_a_time = True

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            database = folder / "mlflow.db"
            if not database.exists():
                _make_database(database)
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
        self._is_local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:///")

    def tracker(self, run_id: str, name: str, config: dict[str, Any], handle: str | None) -> GeneralTracker:
        """See `Service`."""
        from accelerate.tracking import MLflowTracker

        artifacts = (self.folder / "mlflow-artifacts").as_uri() if self._is_local else None
        return MLflowTracker(self.sweep, logging_dir=artifacts, run_id=handle, run_name=name)

    def handle_of(self, tracker: Any) -> str | None:
        """See `Service`."""
        return tracker.tracker.info.run_id

    def log(self, tracker: Any, rows: Sequence[Told]) -> None:
        """See `Service`; many at once, for its database took .2 s for each call of Accelerate's tracker."""
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = round(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for step, values in rows for name, value in values.items()]
        for first in range(0, len(metrics), _MLFLOW_BATCH):
            client = mlflow.MlflowClient()
            client.log_batch(tracker.tracker.info.run_id, metrics[first : first + _MLFLOW_BATCH])

    def send_report(self, tracker: Any, page: Path, answer: str) -> None:
        """See `Service`."""
        import mlflow  # pyright: ignore[reportMissingImports]

        mlflow.set_tag("mlflow.note.content", answer)
        mlflow.log_artifact(str(page))


def _make_database(path: Path) -> None:
    """Make MLflow's database whole or not at all: one whose making was cut short is refused by MLflow ever after."""
    import mlflow  # pyright: ignore[reportMissingImports]

    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{unfinished}").search_experiments()
    unfinished.replace(path)


class Trackio(Service):
    """trackio, in its own folder (TRACKIO_DIR), where `trackio show` looks for it: a project is a sweep."""

    one_at_a_time = True

    def tracker(self, run_id: str, name: str, config: dict[str, Any], handle: str | None) -> GeneralTracker:
        """See `Service`."""
        from accelerate.tracking import TrackioTracker

        return TrackioTracker(self.sweep, name=name, group=self.sweep, config=config, resume="allow", embed=False)

    def configure(self, tracker: GeneralTracker, config: dict[str, Any]) -> None:
        """Done when it was opened."""

    def send_report(self, tracker: Any, page: Path, answer: str) -> None:
        """See `Service`."""
        import trackio  # pyright: ignore[reportMissingImports]

        trackio.save(page, project=self.sweep)


SERVICES: dict[str, type[Service]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MlFlow,
    "trackio": Trackio,
}
