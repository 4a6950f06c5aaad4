"""`preview`: what a planned sweep would tell, and what it costs, before it is trained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flopsfit_ds.base.units import format_count, format_flops, format_seconds
from flopsfit_ds.cli.fitting.tables import print_rows
from flopsfit_ds.cli.options import (
    AllowImport,
    AsJson,
    Overrides,
    SpecArgument,
    fit_file,
    plan_from,
    quantity,
    tuning_from,
)
from flopsfit_ds.cli.prose import say
from flopsfit_ds.spec.fit_options import COUNT_FIELDS

if TYPE_CHECKING:
    from flopsfit_ds.fit.preview import DesignPreview, PlannedPoint
    from flopsfit_ds.plan.sweep_plan import SweepPlan


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("preview")(preview_command)


def preview_command(
    spec: SpecArgument,
    overrides: Overrides = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Standard deviation of ln(loss) about the law; what sweeps of such compute showed, without."),
    ] = None,
    target_compute: Annotated[
        str | None, typer.Option(help="FLOPs of the run to be planned; the spec's, or ten times the largest run.")
    ] = None,
    prior: Annotated[Path | None, typer.Option(help="A fit.json, or its sweep, whose law is about right.")] = None,
    allow_import: AllowImport = None,
    as_json: AsJson = False,
) -> None:
    """Show what a planned sweep would tell, and refuse one that cannot identify a law.

    Example: flopsfit-ds preview quickstart --target-compute 1e14
    """
    from flopsfit_ds.fit import preview_design
    from flopsfit_ds.fit.preview import load_prior

    plan = plan_from(spec, overrides, allow_import)
    tuning = tuning_from(spec, overrides, allow_import)
    options = plan.spec.fit
    preview = preview_design(
        planned_points(plan),
        noise=noise,
        target_compute=options.target_compute
        if target_compute is None
        else quantity(target_compute, "--target-compute"),
        prior=None if prior is None else load_prior(fit_file(prior)),
        loss=options.loss,
        huber_delta=options.huber_delta,
    )
    price = _price(plan, tuning)
    if as_json:
        print(json.dumps({**preview.to_json_dict(), "price": asdict(price)}, allow_nan=False))
    else:
        _print_preview(preview, learnt=noise is None)
        say(price.words() + (f"; time: {plan.time_source}" if plan.time_source else ""))


@dataclass(frozen=True)
class Price:
    """What a sweep takes, the tuning of its learning rate with it.

    Attributes:
        num_runs: All trainings, also those at several learning rates, which a fit sees as one point.
        flops: Of all of them.
        gpu_hours: Predicted; None where nothing that was measured on this CPU tells, as all times then.
        seconds: Until the last run ends, on all that is planned for.
        tuning_runs: Of them, runs of the tuning.
        tuning_gpu_hours: Of them.
        money: At the declared price of a GPU-hour; None where none is declared.
    """

    num_runs: int
    flops: float
    gpu_hours: float | None
    seconds: float | None
    tuning_runs: int
    tuning_gpu_hours: float | None
    money: float | None

    def words(self) -> str:
        """For people."""
        text = f"price: {self.num_runs} runs, {format_flops(self.flops)} FLOPs"
        if self.gpu_hours is None or self.seconds is None:
            return text
        text += f", {self.gpu_hours:.3g} GPU-hours"
        if self.money is not None:
            text += f", {self.money:,.2f} at the price of a GPU-hour"
        if self.tuning_runs:
            text += f", of which {self.tuning_runs} runs and {self.tuning_gpu_hours or 0.0:.3g} GPU-hours tune the "
            text += "learning rate"
        return f"{text}; done after {format_seconds(self.seconds)}"


def _price(plan: SweepPlan, tuning: SweepPlan | None) -> Price:
    plans = [plan] if tuning is None else [plan, tuning]
    spans = [span.seconds for each in plans if (span := each.makespan()) is not None]
    is_timed = len(spans) == len(plans)
    hours = [_gpu_hours(each) for each in plans]
    rate = plan.cluster.price_per_gpu_hour
    return Price(
        num_runs=sum(len(each.runs) for each in plans),
        flops=sum(run.flops for each in plans for run in each.runs),
        gpu_hours=sum(hours) if is_timed else None,
        seconds=sum(spans) if is_timed else None,
        tuning_runs=0 if tuning is None else len(tuning.runs),
        tuning_gpu_hours=sum(hours[1:]) if is_timed else None,
        money=None if rate is None or not is_timed else rate * sum(hours),
    )


def _gpu_hours(plan: SweepPlan) -> float:
    return sum((run.paid_seconds or 0.0) * run.placement.strategy.num_gpus for run in plan.runs) / 3600.0


def planned_points(plan: SweepPlan) -> list[PlannedPoint]:
    """The runs of a plan as a preview sees them: several learning rates at one point and seed count as one run."""
    from flopsfit_ds.fit import PlannedPoint

    found: dict[tuple[int, int, int], PlannedPoint] = {}
    for run in plan.runs:
        place = run.placement
        seconds = place.predicted_seconds
        hours = None if seconds is None else seconds * place.strategy.num_gpus / 3600.0
        size = getattr(run, COUNT_FIELDS[plan.spec.fit.parameters]) or run.num_params_total
        key = (run.num_params_total, run.num_tokens, run.seed)
        if key in found and hours is not None:
            hours += found[key].gpu_hours or 0.0
        found[key] = PlannedPoint(size, run.num_tokens, run.flops, run.label, hours)
    return list(found.values())


def _print_preview(preview: DesignPreview, *, learnt: bool) -> None:
    origin = ", as sweeps of such compute showed" if learnt else ""
    say(
        f"{len(preview.points)} points, {format_flops(preview.total_flops)} FLOPs in all, noise {preview.noise:.2%}"
        f"{origin}; {preview.compute_rule}"
    )
    headings = ("run", "N", "D", "FLOPs", "share", "GPU h", "error of N* without it grows by")
    rows = [
        (
            point.label or "-", format_count(point.num_params), format_count(point.num_tokens),
            format_flops(point.flops), f"{point.share_of_flops:.1%}",
            "-" if point.gpu_hours is None else f"{point.gpu_hours:.3g}",
            f"{point.adds:.1%}" if math.isfinite(point.adds) else "no bound",
        )
        for point in preview.points
    ]  # fmt: skip
    print_rows(headings, rows)
    factors = [math.exp(e) for e in (preview.log_num_params_standard_error, preview.log_num_tokens_standard_error)]
    say(
        f"at {format_flops(preview.target_compute)} FLOPs: N* {format_count(preview.num_params)} to a factor of "
        f"{factors[0]:.2f}, D* {format_count(preview.num_tokens)} to {factors[1]:.2f}, loss to "
        f"{preview.log_loss_standard_error:.2%} (one standard error, if the law has the prior's form)"
    )
    errors = preview.parameter_standard_errors
    say("  standard errors: " + ", ".join(f"{name} {value:.3g}" for name, value in errors.items()))
