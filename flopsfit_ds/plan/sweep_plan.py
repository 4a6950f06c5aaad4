"""The plan of a sweep: every number resolved, one `RunPlan` a point, nothing left for a later stage to interpret."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flopsfit_ds.base.hardware import Cluster, Machine, resolve_cluster
from flopsfit_ds.base.storage import json_converter
from flopsfit_ds.base.text import html_table
from flopsfit_ds.base.units import format_count, format_flops, known_seconds
from flopsfit_ds.data.checks import check_corpus
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.manifest import find_spec_corpus
from flopsfit_ds.model.architecture import LanguageShape, shape_identity
from flopsfit_ds.model.flops import FlopsSource, conventional_flops
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.plan.design import (
    SPEC_WORDS,
    BatchPlan,
    BatchWords,
    DesignedPoint,
    batch_warnings,
    design_points,
    plan_points,
    size_warnings,
)
from flopsfit_ds.plan.family import Family, SizedModel, count_active, decoder_family, documents_of, num_token_ids
from flopsfit_ds.plan.layouts import Search
from flopsfit_ds.plan.packing.sweep import Makespan, expected_makespan, narrow_batches, spread_long_runs, year_long
from flopsfit_ds.plan.placement import Placement, shared_search
from flopsfit_ds.plan.placing import held_layout_warning, place_points, placement_rules
from flopsfit_ds.plan.recipe.mup import check_mup
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan, known_optimizer, optimizer_warnings
from flopsfit_ds.plan.recipe.recipe import Recipe, batch_tokens, range_warnings, rule_point
from flopsfit_ds.plan.recipe.switches import arithmetic, check_switches, switch_warnings
from flopsfit_ds.plan.recipe.trunks import Branch, share_trunks
from flopsfit_ds.plan.recorded.begun import as_begun
from flopsfit_ds.plan.recorded.chosen import Choices, read_choices
from flopsfit_ds.plan.recorded.cpu_time import with_times
from flopsfit_ds.plan.trials import Trial, trials_of
from flopsfit_ds.spec import SweepSpec

TRAINING_VERSION = 1
"""Part of every run's identity: raised when a change of the training code changes losses."""
_DATASET_WORDS = BatchWords("global_batch_samples", "make the samples shorter")
_RULE_WORDS = BatchWords("training.global_batch", "shorten model.context_length")


@dataclass(frozen=True)
class RunPlan:
    """One training, with every number resolved.

    Attributes:
        run_id: Hash of all that can change the loss, and of nothing else.
        label: For people: budget, size, tokens.
        model: Shape.
        num_params_total: All parameters.
        num_params_non_embedding: Outside vocabulary-sized tables.
        num_params_trainable: With a gradient.
        num_tokens: Training tokens, whole global batches.
        num_steps: Optimiser steps.
        global_batch_sequences: Sequences a step.
        context_length: Tokens a sequence.
        compute_budget_flops: The isoFLOP budget; None for other designs.
        flops: Exact training FLOPs of `num_tokens`.
        conventional_flops: 6 N D, N the active parameters.
        recipe: Optimiser and schedule.
        seed: Of weights and order of data.
        unique_tokens: Training tokens there are; None until tokenised.
        heldout_tokens: Tokens the loss is measured on.
        placement: ZeRO stage, GPUs, micro-batch, why; no part of the identity.
        layout_held: Why GPUs, micro-batch and accumulation are part of the identity after all; empty
            where they are not.
        num_params_active: That a token makes use of; None where unknown.
        num_params_matrices: In matrices, output head among them; None where unknown.
        flops_source: `counted`, or `6nd` where the user accepted 6 N D.
        branch: Where it leaves the trunk that it shares; no part of the identity.
        keep_steps: After which steps it keeps its state for branches; no part of the identity.
    """

    run_id: str
    label: str
    model: Annotated[LanguageShape, Field(discriminator="family")]
    num_params_total: int
    num_params_non_embedding: int
    num_params_trainable: int
    num_tokens: int
    num_steps: int
    global_batch_sequences: int
    context_length: int
    compute_budget_flops: float | None
    flops: float
    conventional_flops: float
    recipe: Recipe
    seed: int
    unique_tokens: int | None
    heldout_tokens: int
    placement: Placement
    layout_held: str = ""
    num_params_active: int | None = None
    num_params_matrices: int | None = None
    flops_source: FlopsSource = "counted"
    branch: Branch | None = None
    keep_steps: tuple[int, ...] = ()

    @property
    def paid_share(self) -> float:
        """Share of its steps that are trained for this run alone, and not by its trunk."""
        return 1.0 if self.branch is None else 1 - self.branch.step / self.num_steps

    @property
    def paid_seconds(self) -> float | None:
        """Time of the steps that are trained for this run alone; None where no time is known."""
        known = self.placement.predicted_seconds
        return None if known is None else known * self.paid_share

    @property
    def ranking_seconds(self) -> float:
        """The same by the model that ranks layouts; on a CPU right in proportion only."""
        return self.placement.predicted_step_seconds * self.num_steps * self.paid_share

    def to_json_dict(self) -> dict:
        """Plain JSON values; `from_json_dict` reads them back."""
        return json_converter(RunPlan).dump_python(self, mode="json")

    @staticmethod
    def from_json_dict(values: dict) -> RunPlan:
        """The plan that `to_json_dict` wrote.

        Raises:
            pydantic.ValidationError: The values are no run plan of this version.
        """
        return json_converter(RunPlan).validate_python(values)


@dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep, and where they are to run.

    Attributes:
        spec: What the user wants.
        folder: The sweep's folder.
        cluster: The hardware planned for.
        corpus: The data.
        runs: One a point, in the order of the design.
        warnings: What the user should know.
        time_source: On a CPU, where its runs' times come from, or why there are none; empty on GPUs.
    """

    spec: SweepSpec
    folder: Path
    cluster: Cluster
    corpus: Corpus
    runs: tuple[RunPlan, ...]
    warnings: tuple[str, ...]
    time_source: str = ""

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.spec.name

    def layouts_of(self, run: RunPlan) -> Search:
        """The search that placed a run of this plan."""
        search = Search(
            run.placement.profile,
            run.flops / (run.num_steps * run.global_batch_sequences),
            run.global_batch_sequences,
            self.spec.training.precision,
            self.cluster,
            placement_rules(self.spec, run.model, run.placement.profile),
            run.placement.strategy.micro_batch_size_per_gpu if run.layout_held else None,
        )
        return shared_search(search)

    def makespan(self) -> Makespan | None:
        """How long the sweep takes on all of its devices; None where the time of a run is not known.

        A branch that waits for its trunk ends before it: it leaves it for a part of what is left.
        """
        seconds = [run.paid_seconds for run in self.runs]
        known = [each for each in seconds if each is not None]
        return self._makespan(known) if len(known) == len(seconds) else None

    def _makespan(self, seconds: Sequence[float]) -> Makespan:
        placements = [run.placement for run in self.runs]
        return expected_makespan(placements, seconds, self.cluster, self.spec.placement.points_per_gpu)

    def _repr_html_(self) -> str:
        """What a notebook shows: a row a run."""
        counts = [(run.label, format_count(run.num_params_total), format_count(run.num_tokens)) for run in self.runs]
        places = [(run.placement.strategy.label, known_seconds(run.placement.predicted_seconds)) for run in self.runs]
        rows = [
            (*count, format_flops(run.flops), *at) for count, run, at in zip(counts, self.runs, places, strict=True)
        ]
        title = f"{self.name}: {len(self.runs)} runs" + (f"; time: {self.time_source}" if self.time_source else "")
        return html_table(("run", "N", "D", "FLOPs", "where", "time"), rows, title)

    def without_waiting(self) -> SweepPlan:
        """The plan with more GPUs for runs that all of the sweep would wait for."""
        placements = [run.placement for run in self.runs]
        searches = [self.layouts_of(run) for run in self.runs]
        # in whole runs, and not in what branches take beyond their trunks
        whole = [run.placement.predicted_step_seconds * run.num_steps for run in self.runs]
        spread = spread_long_runs(placements, whole, searches, self.cluster, self.spec.placement.points_per_gpu)
        plan = replace(self, runs=tuple(map(lambda run, to: replace(run, placement=to), self.runs, spread)))
        whole = [run.placement.predicted_step_seconds * run.num_steps for run in plan.runs]
        seconds = {run.label: run.ranking_seconds for run in plan.runs}
        now = plan._makespan([run.ranking_seconds for run in plan.runs])
        said = narrow_batches(spread, whole, searches, [run.label for run in plan.runs], self.cluster, now)
        said += year_long(seconds, now, self.cluster)
        return replace(plan, warnings=tuple(dict.fromkeys((*self.warnings, *said))))

    def to_json_dict(self) -> dict:
        """Plain JSON values; `from_json_dict` reads them back."""
        return json_converter(SweepPlan).dump_python(self, mode="json")

    @staticmethod
    def from_json_dict(values: dict) -> SweepPlan:
        """The plan that `to_json_dict` wrote.

        Raises:
            pydantic.ValidationError: The values are no plan of this version.
        """
        return json_converter(SweepPlan).validate_python(values)


def build_plan(
    spec: SweepSpec,
    *,
    spec_folder: str | Path = ".",
    family: Family | None = None,
    corpus: Corpus | None = None,
    machine: Machine | None = None,
    loss: LossTraits = LossTraits(),  # noqa: B008
    optimizer: OptimizerPlan | None = None,
    choices: Choices | None = None,
) -> SweepPlan:
    """Resolve a spec into a plan. Imports no torch and answers in milliseconds.

    Args:
        spec: What the user wants.
        spec_folder: Folder that the spec's relative paths start from.
        family: Models in all sizes; without it, the built-in decoder.
        corpus: The data; without it, what the spec's `data` section names.
        machine: What `hardware: auto` stands for; without it, this machine.
        loss: What was seen of the loss of a user's class; without it, that of the built-in decoder.
        optimizer: A user's own, looked at; without it, what the spec's section means by itself.
        choices: Batches that an adaptive design chose; without it, those that the sweep's folder holds.

    Raises:
        PlanError: A point fits nowhere, or a budget does not fill one batch.
        DataError: The data is missing, damaged or shorter than one sequence.
        SpecError: An unknown device.
    """
    cluster = resolve_cluster(arithmetic(spec.training), machine, **spec.hardware.model_dump())
    check_switches(spec, cluster.device_name)
    check_mup(spec)
    optimizer = optimizer or known_optimizer(spec.training, cluster.kind)
    folder = Path(spec.output_root) / spec.name
    found = corpus or find_spec_corpus(spec, Path(spec_folder), num_token_ids(spec), folder / "data")
    documents = documents_of(spec, found)
    if documents is not None:
        found = replace(found, notes=(*found.notes, documents.note))
    family = family or decoder_family(spec, optimizer, () if documents is None else documents.keys)
    context_length = spec.model.context_length
    check_corpus(found, context_length)
    training = spec.training
    words = _DATASET_WORDS if found.source == "dataset" else SPEC_WORDS
    words = words if training.global_batch is None else _RULE_WORDS
    choices, warnings = (choices, []) if choices is not None else read_choices(folder, spec)
    points = design_points(spec.design, family.nearest, choices.runs)
    held = loss.depends_on_layout
    planned = plan_points(
        points,
        context_length,
        lambda group: batch_tokens(training, [rule_point(point.model, point.num_tokens) for point in group]),
        words=words,
        one_batch=held is not None,
        by_rule=training.global_batch is not None,
    )
    together = list(zip(points, planned, strict=True))
    placements = place_points(spec, cluster, together, loss)
    trials = trials_of(spec, together, optimizer, choices.runs)

    def runs_on(corpus: Corpus) -> list[RunPlan]:
        data = corpus.identity if documents is None else [*corpus.identity, documents.digest]
        return [
            _plan_run(spec, corpus, *together[each.number], placements[each.number], each, loss, data)
            for each in trials
        ]

    candidates = runs_on(found)
    warnings += choices.words(spec)
    if corpus is None:
        found, candidates, said = as_begun(spec, found, Path(spec_folder), folder, candidates, runs_on)
        warnings += said
    if found.absent is not None:
        warnings.append(f"data.path: {found.absent} does not exist yet; with it, all run ids will be others")
    if held is not None:
        heldout = found.heldout_tokens // spec.model.context_length if loss.needs_whole_batches else None
        warnings.append(held_layout_warning(placements[0], held, heldout))
    runs: dict[str, RunPlan] = {}
    for run in candidates:
        if run.run_id in runs:
            warnings.append(f"{run.label}: stands more than once in the design and is trained once")
        runs.setdefault(run.run_id, run)
    by_run = zip(candidates, trials, strict=True)
    batches = [(run.label, run.compute_budget_flops, planned[trial.number]) for run, trial in by_run]
    warnings += size_warnings(points)
    warnings += batch_warnings(batches, found, words)
    warnings += range_warnings(training, [(run.label, each.at) for run, each in zip(candidates, trials, strict=True)])
    warnings += optimizer_warnings(spec.placement, training, optimizer)
    warnings += switch_warnings(spec, [(run.label, run.placement.strategy.offload) for run in runs.values()])
    if training.one_trunk:
        shared = share_trunks(tuple(runs.values()))
        warnings += shared.warnings
        for run_id, run in runs.items():
            branch, keep_steps = shared.branches.get(run_id), shared.keep_steps.get(run_id, ())
            runs[run_id] = replace(run, branch=branch, keep_steps=keep_steps)
    spec = count_active(spec, [point.model for point in points], warnings)
    plan = SweepPlan(
        spec=spec,
        folder=folder,
        cluster=cluster,
        corpus=found,
        runs=tuple(runs.values()),
        warnings=tuple(dict.fromkeys((*family.warnings, *warnings))),
    )
    return with_times(plan.without_waiting())


def _plan_run(
    spec: SweepSpec,
    corpus: Corpus,
    point: DesignedPoint[SizedModel],
    batches: BatchPlan,
    placement: Placement,
    trial: Trial,
    loss: LossTraits,
    data: list[Any],
) -> RunPlan:
    model, recipe, seed = point.model, trial.recipe, trial.seed
    identity = {
        "training_version": TRAINING_VERSION,
        "model": shape_identity(model.shape),
        "num_steps": batches.num_steps,
        "global_batch_sequences": batches.global_batch_sequences,
        "context_length": spec.model.context_length,
        "recipe": recipe.identity(),
        "seed": seed,
        "data": data,
        **model.identity(),
        **loss.identity(),
        **placement.strategy.identity(),
    }
    if loss.depends_on_layout:
        strategy = placement.strategy
        identity["layout"] = [
            strategy.num_gpus, strategy.micro_batch_size_per_gpu, placement.gradient_accumulation_steps,
        ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    budget = point.compute_budget_flops
    parts = [format_flops(budget)] if budget else []
    parts += [f"n{format_count(model.num_params)}", f"d{format_count(batches.num_tokens)}"]
    parts += [f"lr{recipe.learning_rate:.3g}"] if trial.names_rate else []
    parts += [f"seed{seed}"] if len(spec.training.seeds) > 1 else []
    return RunPlan(
        run_id=digest[:12],
        label="-".join(parts),
        model=model.shape,
        num_params_total=model.num_params,
        num_params_non_embedding=model.num_params_non_embedding,
        num_params_trainable=model.num_params_trainable,
        num_tokens=batches.num_tokens,
        num_steps=batches.num_steps,
        global_batch_sequences=batches.global_batch_sequences,
        context_length=spec.model.context_length,
        compute_budget_flops=budget,
        flops=model.flops_per_token * batches.num_tokens,
        conventional_flops=conventional_flops(model.num_params_active or model.num_params, batches.num_tokens),
        recipe=recipe,
        seed=seed,
        unique_tokens=corpus.distinct_tokens(batches.num_tokens),
        heldout_tokens=corpus.heldout_tokens,
        placement=placement,
        layout_held=loss.depends_on_layout or "",
        num_params_active=model.num_params_active,
        num_params_matrices=model.num_params_matrices,
        flops_source=model.flops_source,
    )
