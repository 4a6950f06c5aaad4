"""The steps of a sweep as functions: plan, train, fit, report. The command line calls these and nothing below."""

from __future__ import annotations

import functools
import html
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.errors import DataError, FitError, LaunchError
from flopsfit_ds.base.hardware import Machine, launched_world
from flopsfit_ds.base.storage import write_json
from flopsfit_ds.base.units import format_count, format_flops
from flopsfit_ds.base.usercode import check_allowed, import_class
from flopsfit_ds.data.manifest import check_source, watched_files
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.plan import sweep_plan as _planning
from flopsfit_ds.plan.family import counts_active
from flopsfit_ds.plan.recipe.switches import compiles
from flopsfit_ds.plan.recorded.chosen import Choices
from flopsfit_ds.plan.recorded.cpu_time import remember
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.spec import ClassModel, HfModel, SweepSpec
from flopsfit_ds.spec.fit_options import DEFAULT_COUNT, ParameterCount
from flopsfit_ds.spec.optimizers import FactoryOptimizer
from flopsfit_ds.study.tuning import read_tuning, tuning_spec, with_multiplier

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from flopsfit_ds.data.corpus import Corpus
    from flopsfit_ds.engine import ExecutorName, Progress
    from flopsfit_ds.fit import ScalingFit
    from flopsfit_ds.fit.forecast.prediction import Prediction
    from flopsfit_ds.fit.points.points import Exclusion
    from flopsfit_ds.report.figures.svg import Svg
    from flopsfit_ds.report.table import Table
    from flopsfit_ds.train.data.token_file import TokenFile
    from flopsfit_ds.train.order import WorkerTask


def build_plan(
    spec: SweepSpec,
    *,
    spec_folder: str | Path = ".",
    allow_import: Sequence[str] = (),
    machine: Machine | None = None,
    choices: Choices | None = None,
    tell: Callable[[str], None] = lambda _said: None,
) -> SweepPlan:
    """Resolve a spec into a plan: every number of every run. Imports torch for models other than the built-in decoder.

    Where a rule's multiplier is to be tuned, it is taken from the records of `tuning_plan`, if they are complete.

    Args:
        spec: What the user wants.
        spec_folder: Folder that the spec's relative paths start from.
        allow_import: Packages whose classes the spec may name.
        machine: What `hardware: auto` stands for; without it, this machine.
        choices: Batches of an adaptive design; without it, those that the sweep's folder holds.
        tell: Told what takes time: each model of transformers whose operations are counted.

    Raises:
        SpecError: An unknown device, or a class outside the packages allowed.
        PlanError: A point fits nowhere, or a budget does not fill one batch.
        DataError: The data is missing, damaged or shorter than one sequence.
    """
    options = (spec_folder, allow_import, machine)
    short = tuning_spec(spec)
    if short is None:
        return _plan(spec, *options, choices, tell)
    tuning = _plan(short, *options, None, tell)
    tuned = read_tuning(tuning, list(SweepFolder(tuning.folder).records()))
    if tuned is None:
        plan = _plan(spec, *options, choices, tell)
        flops = format_flops(sum(run.flops for run in tuning.runs))
        said = (
            f"training.learning_rate.tune: {len(tuning.runs)} runs of {flops} FLOPs in all come first, in "
            f"{tuning.folder}; until they have ended all rates and run ids here are those of multiplier 1"
        )
        return replace(plan, warnings=(said, *plan.warnings))
    plan = _plan(with_multiplier(spec, tuned.multiplier), *options, choices, tell)
    said = [each for each in (tuned.words(), tuned.warning()) if each]
    return replace(plan, warnings=(*said, *plan.warnings))


def tuning_plan(
    spec: SweepSpec,
    *,
    spec_folder: str | Path = ".",
    allow_import: Sequence[str] = (),
    machine: Machine | None = None,
) -> SweepPlan | None:
    """The plan of the short sweep that sets the multiplier of a spec's rule; None where none is asked for.

    Raises:
        SpecError: As `build_plan`.
        PlanError: As `build_plan`.
        DataError: As `build_plan`.
    """
    short = tuning_spec(spec)
    return None if short is None else _plan(short, spec_folder, allow_import, machine)


def _plan(
    spec: SweepSpec,
    spec_folder: str | Path,
    allow_import: Sequence[str],
    machine: Machine | None,
    choices: Choices | None = None,
    tell: Callable[[str], None] = lambda _said: None,
) -> SweepPlan:
    family, loss, optimizer = None, LossTraits(), None
    if spec.placement.deepspeed:
        from flopsfit_ds.study.probes.deepspeed_keys import check_deepspeed_keys

        check_deepspeed_keys(spec.placement.deepspeed)
    if isinstance(spec.training.optimizer, FactoryOptimizer):
        from flopsfit_ds.train.optimizers.own import look_at_own

        optimizer = look_at_own(spec.training.optimizer, allow_import)
    if isinstance(spec.model, ClassModel):
        check_allowed(spec.model.class_path, allow_import)
        import_class(spec.model.class_path, allow_import)
        from flopsfit_ds.study.families.of_class import spec_class_family
        from flopsfit_ds.study.probes.loss import look_at_language_model

        family = spec_class_family(spec.model, spec.training, counts_active(spec), optimizer)
        probe = look_at_language_model(spec.model)
        family.warnings += probe.warnings
        loss = probe.traits
    elif isinstance(spec.model, HfModel):
        from flopsfit_ds.study.families.of_hf import HfFamily

        family = HfFamily(spec.model, spec.training, Path(spec_folder), counts_active(spec), optimizer, tell)
        loss = family.traits()
        settled = spec.model.model_copy(update={"vocab_size": family.vocab_size})
        spec = spec.model_copy(update={"model": settled})
    return _planning.build_plan(
        spec, spec_folder=spec_folder, family=family, machine=machine, loss=loss, optimizer=optimizer, choices=choices
    )


def run_sweep(
    plan: SweepPlan,
    *,
    executor: ExecutorName = "auto",
    slots: int | None = None,
    progress: Progress | None = None,
    tasks: Callable[[RunPlan], WorkerTask] | None = None,
) -> tuple[RunRecord, ...]:
    """Train every run of a plan that has no record yet, under whatever launcher this process was started by.

    Args:
        plan: What to train.
        executor: `auto` (launcher's ranks, else this machine), `slurm` or `ray`.
        slots: Slots on a CPU, instead of the plan's.
        progress: Told what happens.
        tasks: What a run trains; without it, a language model on the plan's corpus.

    Returns:
        One record a run, in the plan's order.

    Raises:
        LaunchError: The slots, or the launcher's ranks, differ from what the plan needs.
        SweepFolderError: The folder cannot be written, or another driver holds it.
        DataError: The data is missing, changed since the sweep began, or holds ids beyond the vocabulary.
    """
    from flopsfit_ds import engine

    launched = launched_world(os.environ) if executor in ("auto", "launched") else None
    if launched is not None and launched[0] != plan.cluster.num_gpus:
        raise LaunchError(
            f"the launcher started {launched[0]} ranks, and the plan is for {plan.cluster.num_gpus} devices "
            f"({plan.cluster.num_nodes} nodes of {plan.cluster.gpus_per_node}); start as many ranks, or set "
            f"hardware.gpus_per_node={launched[1]} and hardware.num_nodes={launched[0] // launched[1]}"
        )
    if plan.corpus.absent is not None:
        raise DataError(
            f"data.path: {plan.corpus.absent}: no such file; a sweep can be planned without it, not trained"
        )
    for corpus in (*plan.corpus.trained_on, *(each for _, each in plan.corpus.heldout_sets)):
        if corpus.source == "tokens":
            check_source(corpus, plan.folder.absolute() / "data")
    records = engine.run_sweep(
        plan, tasks=tasks or functools.partial(_token_task, plan), executor=executor, slots=slots, progress=progress
    )
    if executor in ("auto", "local") and slots in (None, plan.cluster.gpus_per_node):
        remember(plan, records)
    return records


def _token_task(plan: SweepPlan, run: RunPlan) -> WorkerTask:
    """What a run of a spec's sweep trains; the corpus is tokenised when the first run asks for it."""
    from flopsfit_ds.train.data.mixture import MixtureWorkload
    from flopsfit_ds.train.data.token_file import prepare_tokens
    from flopsfit_ds.train.data.tokens import TokenWorkload
    from flopsfit_ds.train.order import HeldoutSet, WorkerTask

    vocab_size = run.model.vocab_size
    assert vocab_size is not None
    folder = plan.folder.absolute() / "data"
    parts = [prepare_tokens(corpus, folder, vocab_size) for corpus in plan.corpus.trained_on]
    sets = [(name, prepare_tokens(corpus, folder, vocab_size)) for name, corpus in plan.corpus.heldout_sets]
    read = (*plan.corpus.trained_on, *(corpus for _, corpus in plan.corpus.heldout_sets))
    if run.unique_tokens is None:
        _warn_of_repeats(plan.corpus, run, parts)
    workloads = tuple(TokenWorkload(run.model, tokens) for tokens in parts)
    mixed = plan.corpus.mixed
    names, weights = tuple(source.name for source in mixed), tuple(source.weight for source in mixed)
    return WorkerTask(
        plan=run,
        workload=MixtureWorkload(run.model, names, weights, workloads) if mixed else workloads[0],
        checkpoint_every_seconds=plan.spec.training.checkpoint_every,
        peak_flops=plan.cluster.peak_flops,
        sweep_folder=str(plan.folder.absolute()),
        trust_shared_folder=plan.spec.execution.trust_shared_folder,
        hang_timeout_seconds=plan.spec.execution.hang_timeout,
        data_workers=plan.spec.training.data_workers,
        compiled=compiles(plan.spec, plan.cluster.device_name),
        bytes_per_token=_bytes_per_token(parts, weights or (1,)),
        heldout_sets=tuple(
            HeldoutSet(name, TokenWorkload(run.model, each, only_measured=True), each.bytes_per_token)
            for name, each in sets
        ),
        watched=watched_files(read, folder),
    )


def _warn_of_repeats(corpus: Corpus, run: RunPlan, parts: Sequence[TokenFile]) -> None:
    """Say what planning could not, before the data was tokenised."""
    for drawn, tokens in zip(corpus.drawn(run.num_tokens), parts, strict=True):
        unique = tokens.num_tokens - tokens.heldout_tokens
        if drawn.num_tokens > unique > 0:
            of_source = f" of {drawn.source}" if drawn.source else ""
            _log.warning(
                "%s: trains on %s tokens%s of %s unique ones: the data repeats %.1f times",
                run.label, format_count(drawn.num_tokens), of_source, format_count(unique), drawn.num_tokens / unique,
            )  # fmt: skip


def _bytes_per_token(parts: Sequence[TokenFile], weights: Sequence[int]) -> float | None:
    """Of a held-out token, by the share of its source; None where one source does not tell."""
    known = [tokens.bytes_per_token for tokens in parts]
    told = [each * weight for each, weight in zip(known, weights, strict=True) if each is not None]
    return sum(told) / sum(weights) if len(told) == len(known) else None


def fit_records(records: Iterable[RunRecord], spec: SweepSpec, unusable: Sequence[Exclusion] = ()) -> ScalingFit:
    """Fit the law that the spec asks for to the records of its sweep.

    Args:
        records: The runs.
        spec: Says which law.
        unusable: Runs that have ended and whose records cannot be read: they are listed among those left out.

    Raises:
        FitError: The completed runs do not support the law.
    """
    from flopsfit_ds.fit import fit_scaling_law, points_from_records

    judged = [record.judged_by(spec.fit.heldout) for record in records]
    chosen = points_from_records(judged, parameter_count=spec.fit.parameters)
    excluded = (*chosen.excluded, *unusable)
    return fit_scaling_law(chosen.points, excluded=excluded, **spec.fit.for_points()).counting(spec.fit.parameters)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        records: One a run, in the plan's order.
        fit: The law, or the error that says why the completed runs do not support one.
        report: The report's page.
        parameter_count: What N counts.
    """

    records: tuple[RunRecord, ...]
    fit: ScalingFit | FitError
    report: Path
    parameter_count: ParameterCount = DEFAULT_COUNT

    @property
    def law(self) -> ScalingFit:
        """The fit.

        Raises:
            FitError: There is none.
        """
        if isinstance(self.fit, FitError):
            raise self.fit
        return self.fit

    def predict(self, compute: float | None = None, **sizes: Any) -> Prediction:
        """Loss at the optimum of a budget, of the target without one, or at given sizes; see `ScalingFit.predict`.

        Raises:
            FitError: There is no law.
        """
        compute = self.law.target_compute if compute is None and not sizes else compute
        return self.law.predict(compute, **sizes)

    def table(self) -> Table:
        """N*, D* and loss at each budget and at the target; it is text where printed, and a table in a notebook."""
        from flopsfit_ds.report import gather
        from flopsfit_ds.report.law_tables import optima_table

        findings = gather(self.records, self.fit, self.parameter_count)
        return optima_table(findings.isoflop, findings.fit)

    def plot(self, name: str = "isoflop") -> Svg:
        """One figure of the report, which a notebook shows: isoflop or tokens, frontier, residuals, optimum.

        Raises:
            FitError: The runs have no such figure.
        """
        from flopsfit_ds.report import gather
        from flopsfit_ds.report.write import draw_figures

        figures, _ = draw_figures(gather(self.records, self.fit, self.parameter_count))
        drawn = {figure.name: figure for figure in figures}
        if name not in drawn:
            raise FitError(f"plot: these runs have no figure {name!r}; there is {', '.join(drawn) or 'none'}")
        return drawn[name]

    def answer(self) -> str:
        """The prediction at the target in a sentence, or why there is none."""
        if isinstance(self.fit, FitError):
            return f"no scaling law: {self.fit}"
        try:
            told = self.predict()
        except FitError as error:
            return f"no optimum: {error}"
        return (
            f"at {format_flops(told.compute)} FLOPs train {format_count(told.num_params)} parameters on "
            f"{format_count(told.num_tokens)} tokens: loss {told.loss:.4f}, {told.level:.0%} interval "
            f"{told.interval.low:.4f} to {told.interval.high:.4f}"
        )

    def __str__(self) -> str:
        """The answer, the table, and where the page lies."""
        return f"{self.answer()}\n{self.table()}\nreport {self.report}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<p>{html.escape(self.answer())}</p>{self.table()._repr_html_()}"


def try_fit(records: Iterable[RunRecord], spec: SweepSpec, unusable: Sequence[Exclusion] = ()) -> ScalingFit | FitError:
    """The law, or the error that says why the completed runs do not support one; see `fit_records`."""
    try:
        return fit_records(records, spec, unusable)
    except FitError as error:
        return error


def conclude_sweep(plan: SweepPlan, records: Sequence[RunRecord], unusable: Sequence[Exclusion] = ()) -> SweepResult:
    """Fit the law, write `fit.json` and the report; see `fit_records`.

    Raises:
        SweepFolderError: The folder cannot be written.
    """
    from flopsfit_ds.report import write_report

    folder = SweepFolder(plan.folder)
    fit = try_fit(records, plan.spec, unusable)
    records = [record.judged_by(plan.spec.fit.heldout) for record in records]
    if isinstance(fit, FitError):
        folder.fit.unlink(missing_ok=True)
    else:
        write_json(folder.fit, fit.to_json_dict())
    return SweepResult(tuple(records), fit, write_report(folder, records, fit, plan=plan), plan.spec.fit.parameters)
