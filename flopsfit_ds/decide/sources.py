"""Whatever a command is given: tables, exports of trackers, sweep folders, fits; several of them as one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flopsfit_ds.base.errors import DataError, FitError, RecordError
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.spec.fit_options import COUNT_WORDS, DEFAULT_COUNT, ParameterCount, count_in_words

if TYPE_CHECKING:
    from flopsfit_ds.fit.points.points import Exclusion, Point
    from flopsfit_ds.plan.sweep_plan import SweepPlan

Kind = Literal["table", "sweep", "fit"]


@dataclass(frozen=True)
class Source:
    """The runs of one or several places.

    Attributes:
        name: For people.
        kinds: What they were.
        points: The runs that can be used.
        excluded: The others, each with its reason.
        columns: Of a table: quantity -> column; empty for others.
        parameters: What N counts where it is known, as of sweep folders; None of tables.
        gpu_seconds: Device seconds of each point where they were measured, in the order of `points`.
    """

    name: str
    kinds: tuple[Kind, ...]
    points: tuple[Point, ...]
    excluded: tuple[Exclusion, ...]
    columns: dict[str, str]
    parameters: ParameterCount | None
    gpu_seconds: tuple[float | None, ...]

    def flops_per_second(self) -> float | None:
        """Median of a device over the runs that were timed; None where none was."""
        pairs = zip(self.points, self.gpu_seconds, strict=True)
        known = [point.compute_flops / seconds for point, seconds in pairs if seconds]
        return statistics.median(known) if known else None


def read_sources(
    paths: Sequence[Path], columns: Mapping[str, str] | None = None, parameters: str | None = None
) -> Source:
    """The runs of every path, as one.

    Args:
        paths: Tables (CSV, JSONL, Parquet), what trackers keep or export, sweep folders, or the JSON of fits.
        columns: Quantity -> column, for tables whose spelling is not a common one.
        parameters: What N counts in sweep folders; None means what each folder's spec says.

    Raises:
        DataError: One of them cannot be read, or is none of these.
        FitError: A fit without points, or `parameters` for a table.
        RecordError: The plan of a sweep is damaged.
    """
    if not paths:
        raise DataError("give a table, a sweep folder or a fit.json")
    parts = [_read_one(path, dict(columns or {}), parameters) for path in paths]
    if len(parts) == 1:
        return parts[0]
    counts: set[ParameterCount | None] = {part.parameters for part in parts}
    known: dict[ParameterCount, str] = {part.parameters: part.name for part in parts if part.parameters is not None}
    if len(known) > 1:
        told = ", ".join(f"{count_in_words(count)} in {name}" for count, name in known.items())
        raise FitError(
            f"N counts {told}: of one law it must count the same; give fit --parameters, or one "
            "fit.parameters in their specs, and run their sweeps again, which trains nothing"
        )
    points = tuple(_named(point, part.name) for part in parts for point in part.points)
    excluded = tuple(
        replace(gone, row=None, name=f"{part.name} {gone.name or f'row {gone.row}'}")
        for part in parts
        for gone in part.excluded
    )
    return Source(
        name=", ".join(part.name for part in parts),
        kinds=tuple(kind for part in parts for kind in part.kinds),
        points=tuple(replace(point, row=number) for number, point in enumerate(points, start=1)),
        excluded=excluded,
        columns=parts[0].columns if all(part.columns == parts[0].columns for part in parts) else {},
        parameters=counts.pop() if len(counts) == 1 else None,
        gpu_seconds=tuple(seconds for part in parts for seconds in part.gpu_seconds),
    )


def _named(point: Point, source: str) -> Point:
    """A point of several sources: its row alone would not tell which."""
    name = point.label or point.run_id or f"row {point.row}"
    run = None if point.run_id is None else f"{source}:{point.run_id}"
    return replace(point, label=f"{source}:{name}", run_id=run)


def _read_one(path: Path, columns: dict[str, str], parameters: str | None) -> Source:
    from flopsfit_ds.fit.points.tracker_files import is_tracker_folder

    if path.is_dir() and ((path / "plan.json").exists() or (path / "runs").exists() or not is_tracker_folder(path)):
        return _of_sweep(path, parameters)
    if parameters is not None and parameters != DEFAULT_COUNT:
        raise FitError("--parameters is for sweep folders; of a table, name the column with --num-params-column")
    from flopsfit_ds.fit.points.reading import load_points
    from flopsfit_ds.fit.result import is_fit, load_count, load_fit_points

    if path.suffix.lower() == ".json" and is_fit(path):
        points = load_fit_points(path)
        return Source(str(path), ("fit",), points, (), {}, load_count(path), (None,) * len(points))
    table = load_points(path, columns)
    return Source(path.name, ("table",), table.points, table.excluded, table.columns, None, (None,) * len(table.points))


def _of_sweep(path: Path, parameters: str | None) -> Source:
    from flopsfit_ds.fit.points.points import Exclusion, points_from_records

    folder = SweepFolder(path)
    plan = read_sweep_plan(folder) if folder.plan.exists() else None
    wanted = parameters or (DEFAULT_COUNT if plan is None else plan.spec.fit.parameters)
    counts: list[ParameterCount] = [count for count in COUNT_WORDS if count == wanted]
    if not counts:
        raise FitError(f"--parameters is one of {', '.join(COUNT_WORDS)}; got {wanted!r}")
    ended = ended_runs(folder, plan)
    records = ended.records
    if not records:
        raise DataError(_none_ended(path, ended))
    judged = [record.judged_by(None if plan is None else plan.spec.fit.heldout) for record in records]
    chosen = points_from_records(judged, parameter_count=counts[0])
    spent = {
        record.run_id: record.observed.seconds * record.observed.world_size
        for record in records
        if record.observed is not None
    }
    return Source(
        name=path.resolve().name,
        kinds=("sweep",),
        points=chosen.points,
        excluded=(
            *chosen.excluded,
            *ended.unusable,
            *(Exclusion(None, run_id, "of another spec: not in this folder's plan.json") for run_id in ended.others),
        ),
        columns={},
        parameters=counts[0],
        gpu_seconds=tuple(None if p.run_id is None else spent.get(p.run_id) for p in chosen.points),
    )


def plan_beside(path: Path) -> SweepPlan | None:
    """The plan of a sweep folder; None for a table, and for records without a plan.

    Raises:
        DataError: It is of another version.
    """
    folder = SweepFolder(path)
    return read_sweep_plan(folder) if folder.plan.exists() else None


@dataclass(frozen=True)
class EndedRuns:
    """The runs of a folder that have ended.

    Attributes:
        records: Of those that can be used, in the plan's order.
        unusable: Those whose record is damaged, of another version, or says what cannot be.
        others: Ids of those that are not in the plan.
    """

    records: tuple[RunRecord, ...]
    unusable: tuple[Exclusion, ...]
    others: tuple[str, ...]


def ended_runs(sweep: SweepFolder, plan: SweepPlan | None) -> EndedRuns:
    """The runs of a plan that have ended; without one, all of the folder."""
    from flopsfit_ds.fit.points.points import Exclusion

    ids = sweep.other_runs(()) if plan is None else [run.run_id for run in plan.runs]
    records: list[RunRecord] = []
    unusable: list[Exclusion] = []
    for run_id in ids:
        try:
            record = sweep.run(run_id).read_record()
        except RecordError as error:
            reason = f"its record cannot be used: {error}; the sweep's own command writes it again"
            unusable.append(Exclusion(None, run_id, reason))
            continue
        records += [record] if record is not None else []
    others = [] if plan is None else sweep.other_runs(ids)
    return EndedRuns(tuple(records), tuple(unusable), tuple(others))


def _none_ended(path: Path, ended: EndedRuns) -> str:
    if ended.unusable:
        first = ended.unusable[0]
        return f"{path} holds no run that can be used: {len(ended.unusable)} are left out; {first.name}: {first.reason}"
    if not ((path / "plan.json").exists() or (path / "runs").exists()):
        return f"{path}: no folder of a sweep, nor of a tracker's files; give one, such as outputs/NAME, or a table"
    return f"{path} holds no finished run (runs/*/record.json)" + (" of its plan.json" if ended.others else "")


def read_sweep_plan(folder: SweepFolder) -> SweepPlan:
    """The plan that a sweep's folder was last used with.

    Raises:
        DataError: There is none, or it is of another version.
        RecordError: It is damaged.
    """
    from pydantic import ValidationError

    from flopsfit_ds.base.storage import read_json
    from flopsfit_ds.plan.sweep_plan import SweepPlan

    try:
        content = read_json(folder.plan)
    except OSError as error:
        raise DataError(
            f"{folder.path}: no folder of a sweep: {folder.plan.name} cannot be read ({error.strerror}); give the "
            "folder that holds runs/, such as outputs/NAME"
        ) from None
    try:
        return SweepPlan.from_json_dict(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{folder.plan}: of another version of flopsfit-ds ({where}: {first['msg']}); run the sweep again with "
            "this one, which trains nothing twice"
        ) from None
