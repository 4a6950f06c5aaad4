"""What `estimate-memory` answers: points of a spec or of a shape by flags, each by closed forms or by simulation."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.base.units import format_count
from flopsfit_ds.cli.options import plan_from
from flopsfit_ds.cli.planning.memory_tables import Answer, Point, layout_of
from flopsfit_ds.memory import ERROR_OF_DECODERS, MemoryEstimate, ModelProfile, estimate_memory
from flopsfit_ds.plan.family import SizedModel
from flopsfit_ds.plan.layouts import Layout, Search
from flopsfit_ds.plan.placement import choose_layout, shared_search
from flopsfit_ds.plan.recipe.switches import NO_PURE_ZERO0
from flopsfit_ds.simulate.cache import LIBRARIES
from flopsfit_ds.spec import PlacementRules

if TYPE_CHECKING:
    from flopsfit_ds.simulate.results import RankMemory

_TRUST = (
    f"closed forms of the built-in decoder have been up to {-ERROR_OF_DECODERS[0]:.0%} below and "
    f"{ERROR_OF_DECODERS[1]:.0%} above the simulation of a GPU; for other models no bound is known"
)

_UNKNOWN = (
    "the memory of its activations is not known: what is shown is without them, and whether it fits is open; it is "
    "planned at the smallest micro-batch"
)


@dataclass(frozen=True)
class Flags:
    """What flags say beside a shape."""

    vocab: int
    seq: int
    micro_batch: int
    accumulation: int
    zero: int | None
    gpus: int | None
    checkpointing: bool
    precision: str
    device: str
    trained: tuple[str, ...] = ()


def points_of_spec(
    spec: str, overrides: list[str] | None, allow_import: list[str] | None, run: str | None
) -> tuple[list[Point], list[str]]:
    """Points of a plan, each distinct model and batch once.

    Raises:
        SpecError: The spec is not valid, or it has no such run.
    """
    sweep = plan_from(spec, overrides, allow_import)
    runs = [planned for planned in sweep.runs if run is None or planned.run_id.startswith(run)]
    if not runs:
        raise SpecError(f"--run {run}: this sweep has {', '.join(planned.run_id for planned in sweep.runs)}")
    points: dict[tuple[Any, int], Point] = {}
    for planned in runs:
        key = (planned.model, planned.global_batch_sequences)
        if key in points:
            points[key] = replace(points[key], run_ids=(*points[key].run_ids, planned.run_id))
            continue
        profile = planned.placement.profile
        search = sweep.layouts_of(planned)
        points[key] = Point(
            planned.label,
            (planned.run_id,),
            planned.model,
            planned.recipe.frozen_parameters,
            profile,
            search,
            planned.placement.layout,
            planned.placement.reason,
            planned.recipe.optimizer,
        )
    return list(points.values()), list(sweep.warnings)


def point_of_flags(
    layers: int, hidden: int, heads: int, kv_heads: int | None, intermediate: int | None, flags: Flags
) -> Point:
    """A shape without a sweep: the micro-batch is given, stages and GPUs are compared.

    Raises:
        SpecError: The shape or the device is not valid.
        PlanError: The rules leave nothing to compare.
    """
    from flopsfit_ds.model.architecture import ModelShape
    from flopsfit_ds.plan.family import all_but, sized_decoder

    if hidden % heads or heads % (kv_heads or heads):
        raise SpecError(f"--hidden {hidden} must be a multiple of --heads {heads}, and that of --kv-heads {kv_heads}")
    _check_precision(flags.precision, ("fp32", "bf16", "bf16-pure"))
    if flags.precision == "bf16-pure" and flags.zero == 0:
        raise SpecError(f"--precision bf16-pure beside --zero 0: {NO_PURE_ZERO0}; write --zero 1, 2 or 3")
    width = intermediate or -(-hidden * 8 // 24) * 8
    shape = ModelShape(layers, hidden, heads, kv_heads or heads, width, flags.vocab, flags.seq)
    frozen = all_but([name for name, _ in shape.tensors()], flags.trained)
    sized = sized_decoder(shape, frozen, flags.precision)  # pyright: ignore[reportArgumentType]
    label = f"{layers} layers x {hidden}, {format_count(sized.num_params)}"
    return _point(label, sized, flags, frozen)


def point_of_hf(config: str | None, like: str | None, flags: Flags) -> tuple[Point, list[str]]:
    """A model of transformers at its own size, and what was left out of its configuration.

    Args:
        config: A `config.json`, or the folder that holds it.
        like: A published model, where no file is given.
        flags: What is said beside it.

    Raises:
        SpecError: It is no causal language model, or the device is not valid.
        PlanError: The rules leave nothing to compare, or its FLOPs cannot be counted.
    """
    from flopsfit_ds.spec import HfModel
    from flopsfit_ds.spec.training import Training
    from flopsfit_ds.study.families.of_hf import HfFamily, frozen_beside
    from flopsfit_ds.study.families.of_vision import look_at_vision_language, vision_language_values

    _check_precision(flags.precision)
    if flags.checkpointing:
        raise SpecError("--checkpointing recomputes the blocks of the built-in decoder; leave it out")
    values = vision_language_values(Path(config)) if config is not None and flags.trained else None
    if values is not None:
        sized, frozen, warnings = look_at_vision_language(
            values,
            f"--hf-config {config}",
            flags.seq,
            flags.precision,  # pyright: ignore[reportArgumentType]
            flags.trained,
        )
        label = f"{config}: {sized.profile.name} of images and text, {format_count(sized.num_params)}"
        return _point(label, sized, flags, frozen), warnings
    model = HfModel(family="hf", config=config, like=like, context_length=flags.seq)
    training = Training(precision=flags.precision)  # pyright: ignore[reportArgumentType]
    try:
        frozen = frozen_beside(model, flags.trained)
        family = HfFamily(model, training.model_copy(update={"frozen_parameters": frozen}), Path())
    except SpecError as error:
        told = str(error).replace("model.config:", "--hf-config", 1).replace("model.like:", "--like", 1)
        raise SpecError(told) from error
    sized = family.own_size()
    active = sized.num_params_active
    told = f", {format_count(active)} active" if active and active != sized.num_params else ""
    label = f"{like or config}: {sized.profile.name}, {format_count(sized.num_params)}{told}"
    return _point(label, sized, flags, frozen), family.warnings


def _check_precision(precision: str, allowed: tuple[str, ...] = ("fp32", "bf16")) -> None:
    if precision not in allowed:
        raise SpecError(f"--precision: found {precision!r}; allowed: {', '.join(allowed)}")


def _point(label: str, sized: SizedModel, flags: Flags, frozen: tuple[str, ...]) -> Point:
    """Layouts of a model without a sweep.

    Raises:
        PlanError: The rules leave nothing to compare.
    """
    from flopsfit_ds.plan.layouts import rank_layouts

    per_node = min(flags.gpus or 8, 8)
    cluster = resolve_cluster(
        flags.precision, device=flags.device, gpus_per_node=per_node, num_nodes=-(-(flags.gpus or 8) // per_node)
    )
    stages = (1, 2, 3) if flags.precision == "bf16-pure" else (0, 1, 2, 3)
    rules = PlacementRules(
        zero_stages=stages if flags.zero is None else (flags.zero,),  # pyright: ignore[reportArgumentType]
        num_gpus=None if flags.gpus is None else (flags.gpus,),
        activation_checkpointing="always" if flags.checkpointing else "never",
        max_micro_batch_size_per_gpu=flags.micro_batch,
        offload="allowed" if flags.zero in (None, 3) else "never",
    )
    batch = flags.micro_batch * flags.accumulation * cluster.num_gpus
    profile = sized.profile
    search = Search(profile, sized.flops_per_token * flags.seq, batch, profile.precision, cluster, rules)
    survey = search.survey()
    if not survey:
        raise PlanError(f"--gpus {flags.gpus}: beyond one node of {per_node} GPUs only whole nodes are planned")
    fitting = [layout for layout in survey if search.fits(layout)]
    best = rank_layouts(fitting)[0] if fitting else min(survey, key=lambda c: c.device_total_bytes)
    reason = f"{best.strategy.label}: " + (
        "the fewest GPU-seconds of those that fit" if fitting else f"nothing fits; this needs {search.need(best)}"
    )
    return Point(label, (), sized.shape, frozen, profile, search, best, reason)


@contextlib.contextmanager
def answering(quick: bool, as_json: bool, num_points: int) -> Iterator[Callable[[Point], Answer]]:
    """Answers by closed forms, or by the simulation with a progress display.

    Raises:
        SpecError: What is simulated is not installed.
    """
    if quick:
        yield lambda point: _answer(point, None, None, None if point.profile.knows_activations else _UNKNOWN)
        return
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            f"estimate-memory simulates the engine that is installed, and there is no {' and no '.join(missing)} here; "
            "install it, or write --quick for the closed forms, which need none"
        )
    from rich.progress import Progress

    from flopsfit_ds.simulate import SimulationError, Simulator
    from flopsfit_ds.simulate.case import LanguageModelCase
    from flopsfit_ds.simulate.decide import decide_layout, learn_activations
    from flopsfit_ds.study.console import Console

    console = Console(stderr=True)
    shown = Progress(console=console, transient=True, disable=as_json or not console.is_terminal)
    with Simulator() as simulator, shown:
        task = shown.add_task("simulating the engine", total=num_points)

        def answer(point: Point) -> Answer:
            case = LanguageModelCase(point.shape, point.frozen_parameters, point.optimizer)
            try:
                if not point.profile.knows_activations:
                    point = _known_better(
                        point, learn_activations(simulator, case, point.profile, point.search.cluster)
                    )
            except SimulationError as error:
                shown.advance(task)
                return _answer(point, None, None, f"{_UNKNOWN}, for the simulation stopped at {error}")
            proposed = (point.chosen, *point.search.fallbacks(point.chosen)) if point.run_ids else (point.chosen,)
            try:
                decision = decide_layout(
                    simulator,
                    case,
                    point.profile,
                    proposed,
                    point.search.cluster,
                    point.search.rules.memory_margin,
                )
                if point.run_ids and not decision.fits:
                    return _answer(point, None, None, "; ".join(decision.passed_over))
                settled = replace(point, chosen=decision.layout)
                told = decision.passed_over
                if told and decision.fits:
                    strategy = decision.layout.strategy
                    told += (f"{strategy.label} with a micro-batch of {strategy.micro_batch_size_per_gpu} fits",)
                return _answer(settled, decision.memory, decision.rank, None, told)
            except SimulationError as error:
                return _answer(point, None, None, f"the simulation stopped at {error}; {_TRUST}")
            finally:
                shown.advance(task)

        yield answer


def _known_better(point: Point, profile: ModelProfile) -> Point:
    """The point with more known of its model.

    Raises:
        PlanError: Nothing fits any more.
    """
    search = shared_search(replace(point.search, profile=profile))
    choice = choose_layout(search)
    return replace(point, profile=profile, search=search, chosen=choice.ranked[0], reason=choice.reason)


def _answer(
    point: Point,
    memory: MemoryEstimate | None,
    rank: RankMemory | None,
    problem: str | None,
    told: tuple[str, ...] = (),
) -> Answer:
    survey = [point.chosen if layout_of(c) == layout_of(point.chosen) else c for c in point.search.survey()]
    rows = tuple((layout, _closed(point, layout)) for layout in survey)
    reason = "; ".join([*told, point.reason])
    return Answer(point, rows, point.chosen, memory or _closed(point, point.chosen), reason, rank, problem)


def _closed(point: Point, layout: Layout) -> MemoryEstimate:
    search = point.search
    margin, steps = search.rules.memory_margin, layout.gradient_accumulation_steps
    return estimate_memory(point.profile, layout.strategy, search.cluster, margin, steps)
