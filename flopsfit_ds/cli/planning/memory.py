"""`estimate-memory`: will it fit, on how many GPUs, and what takes the room."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import to_json

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.hardware import resolve_cluster
from flopsfit_ds.base.units import format_count
from flopsfit_ds.cli.options import AllowImport, AsJson, Overrides, plan_from
from flopsfit_ds.cli.planning.memory_tables import Answer, Point, as_json_values, layout_of, print_answers
from flopsfit_ds.memory import ERROR_OF_DECODERS, MemoryEstimate, ModelProfile, estimate_memory, profile_decoder
from flopsfit_ds.plan.layouts import Layout, Search
from flopsfit_ds.plan.placement import choose_layout, shared_search
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

_OF_A_SPEC = {"run", "allow_import"}
_OF_A_SHAPE = {
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "intermediate",
    "vocab",
    "seq",
    "micro_batch",
    "zero",
    "gpus",
    "accumulation",
}
_OF_A_SHAPE |= {"checkpointing", "precision", "device"}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("estimate-memory")
    def estimate(  # pyright: ignore[reportUnusedFunction]
        context: typer.Context,
        spec: Annotated[
            str | None,
            typer.Argument(metavar="[SPEC]", help="A spec.yaml or a shipped spec; without it, a shape by flags."),
        ] = None,
        overrides: Overrides = None,
        run: Annotated[
            str | None, typer.Option(help="One run of the spec in detail: its id, or the start of it.")
        ] = None,
        quick: Annotated[bool, typer.Option("--quick", help="Closed forms only: at once, without torch.")] = False,
        as_json: AsJson = False,
        allow_import: AllowImport = None,
        layers: Annotated[int | None, typer.Option(min=1, help="Blocks.")] = None,
        hidden: Annotated[int | None, typer.Option(min=1, help="Width.")] = None,
        heads: Annotated[int | None, typer.Option(min=1, help="Query heads.")] = None,
        kv_heads: Annotated[
            int | None, typer.Option(min=1, help="Key-value heads; without it, as many as query heads.")
        ] = None,
        intermediate: Annotated[int | None, typer.Option(min=1, help="SwiGLU width, or 8/3 of the width.")] = None,
        vocab: Annotated[int, typer.Option(min=1, help="Vocabulary.")] = 50257,
        seq: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 2048,
        micro_batch: Annotated[int, typer.Option(min=1, help="Sequences a GPU takes at once.")] = 1,
        accumulation: Annotated[
            int, typer.Option(min=1, help="Micro-batches of a step on the largest number of GPUs.")
        ] = 1,
        zero: Annotated[int | None, typer.Option(min=0, max=3, help="Only this ZeRO stage.")] = None,
        gpus: Annotated[int | None, typer.Option(min=1, help="Only this number of GPUs.")] = None,
        checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute activations.")] = False,
        precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
        device: Annotated[str, typer.Option(help="A GPU of the table.")] = "H100-SXM",
    ) -> None:
        """Show what each ZeRO stage and number of GPUs would take of a GPU's memory, and what is recommended."""
        _refuse_what_would_be_ignored(context, spec)
        if spec is not None:
            points, warnings = _points_of_spec(spec, overrides, allow_import, run)
        elif layers is None or hidden is None or heads is None:
            raise SpecError("estimate-memory needs a spec, or a shape: --layers, --hidden and --heads")
        else:
            flags = _Flags(vocab, seq, micro_batch, accumulation, zero, gpus, checkpointing, precision, device)
            points, warnings = [_point_of_flags(layers, hidden, heads, kv_heads, intermediate, flags)], []
        with _answering(quick, as_json, len(points)) as answer:
            answers = (answer(point) for point in points)  # each is shown as soon as it is known
            if as_json:
                print(to_json({"points": [as_json_values(answer) for answer in answers]}, indent=1).decode())
            else:
                print_answers(answers, detail=run is not None or spec is None, warnings=warnings)


def _refuse_what_would_be_ignored(context: typer.Context, spec: str | None) -> None:
    """Flags of a shape beside a spec, and those of a spec without one.

    Raises:
        SpecError: There are some.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    misplaced = sorted(given & (_OF_A_SPEC if spec is None else _OF_A_SHAPE))
    if not misplaced:
        return
    flags = ", ".join("--" + name.replace("_", "-") for name in misplaced)
    if spec is None:
        raise SpecError(f"{flags}: only with a spec; name one")
    raise SpecError(
        f"{flags}: only for a shape without a spec; a spec is changed by overrides, such as model.context_length=4096 "
        "placement.zero_stages=[3] placement.num_gpus=[4] hardware.device=L4"
    )


@dataclass(frozen=True)
class _Flags:
    vocab: int
    seq: int
    micro_batch: int
    accumulation: int
    zero: int | None
    gpus: int | None
    checkpointing: bool
    precision: str
    device: str


def _points_of_spec(
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
        )
    return list(points.values()), list(sweep.warnings)


def _point_of_flags(
    layers: int, hidden: int, heads: int, kv_heads: int | None, intermediate: int | None, flags: _Flags
) -> Point:
    """A shape without a sweep: the micro-batch is given, stages and GPUs are compared.

    Raises:
        SpecError: The shape or the device is not valid.
        PlanError: The rules leave nothing to compare.
    """
    from flopsfit_ds.model.architecture import ModelShape
    from flopsfit_ds.model.flops import training_flops_per_token
    from flopsfit_ds.plan.layouts import rank_layouts

    if hidden % heads or heads % (kv_heads or heads):
        raise SpecError(f"--hidden {hidden} must be a multiple of --heads {heads}, and that of --kv-heads {kv_heads}")
    if flags.precision not in ("fp32", "bf16"):
        raise SpecError(f"--precision: found {flags.precision!r}; allowed: fp32, bf16")
    width = intermediate or -(-hidden * 8 // 24) * 8
    shape = ModelShape(layers, hidden, heads, kv_heads or heads, width, flags.vocab, flags.seq)
    per_node = min(flags.gpus or 8, 8)
    cluster = resolve_cluster(
        flags.precision, device=flags.device, gpus_per_node=per_node, num_nodes=-(-(flags.gpus or 8) // per_node)
    )
    rules = PlacementRules(
        zero_stages=(0, 1, 2, 3) if flags.zero is None else (flags.zero,),  # pyright: ignore[reportArgumentType]
        num_gpus=None if flags.gpus is None else (flags.gpus,),
        activation_checkpointing="always" if flags.checkpointing else "never",
        max_micro_batch_size_per_gpu=flags.micro_batch,
        offload="allowed" if flags.zero in (None, 3) else "never",
    )
    profile = profile_decoder(shape, flags.precision)  # pyright: ignore[reportArgumentType]
    batch = flags.micro_batch * flags.accumulation * cluster.num_gpus
    search = Search(profile, training_flops_per_token(shape) * flags.seq, batch, profile.precision, cluster, rules)
    survey = search.survey()
    if not survey:
        raise PlanError(f"--gpus {flags.gpus}: beyond one node of {per_node} GPUs only whole nodes are planned")
    fitting = [layout for layout in survey if search.fits(layout)]
    best = rank_layouts(fitting)[0] if fitting else min(survey, key=lambda c: c.device_total_bytes)
    reason = f"{best.strategy.label}: " + (
        "the fewest GPU-seconds of those that fit" if fitting else f"nothing fits; this needs {search.need(best)}"
    )
    label = f"{layers} layers x {hidden}, {format_count(profile.num_params)}"
    return Point(label, (), shape, (), profile, search, best, reason)


@contextlib.contextmanager
def _answering(quick: bool, as_json: bool, num_points: int) -> Iterator[Callable[[Point], Answer]]:
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

    from flopsfit_ds.cli.console import Console
    from flopsfit_ds.simulate import SimulationError, Simulator
    from flopsfit_ds.simulate.case import LanguageModelCase
    from flopsfit_ds.simulate.decide import decide_layout, learn_activations

    console = Console(stderr=True)
    shown = Progress(console=console, transient=True, disable=as_json or not console.is_terminal)
    with Simulator() as simulator, shown:
        task = shown.add_task("simulating the engine", total=num_points)

        def answer(point: Point) -> Answer:
            case = LanguageModelCase(point.shape, point.frozen_parameters)
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
