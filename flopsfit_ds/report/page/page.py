"""The page: findings and figures into one self-contained HTML document."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

from flopsfit_ds.base.units import format_count, format_flops, format_ratio, format_seconds
from flopsfit_ds.fit.result import ScalingFit
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.report.conduct import conduct
from flopsfit_ds.report.curves import LossCurve
from flopsfit_ds.report.figures.palette import FIXED, Tone, css_variables
from flopsfit_ds.report.figures.svg import Svg
from flopsfit_ds.report.findings import Findings
from flopsfit_ds.report.law_tables import law_table, optima_table
from flopsfit_ds.report.outlook import outlook
from flopsfit_ds.report.page.checks import backtest_table, check_sentences, forms_table
from flopsfit_ds.report.page.formula import in_numbers, typeset
from flopsfit_ds.report.page.provenance import facts, spec_text
from flopsfit_ds.report.page.tables import excluded_table, machines_table, points_table, runs_table
from flopsfit_ds.report.table import span
from flopsfit_ds.report.values import loss_text
from flopsfit_ds.spec.fit_options import COUNT_WORDS

if TYPE_CHECKING:
    from markupsafe import Markup

_MANY = 300
"""Runs, beyond which figures and tables are drawn when scrolled to, so that a picture taken of the whole page may lack
some: 100 open in .14 CPU s as they are, 1,000 in .84 (.43 so)."""


def render_page(
    name: str,
    folder: SweepFolder | None,
    findings: Findings,
    figures: Sequence[Svg],
    tones: Sequence[Tone],
    plan: SweepPlan | None,
    notes: Sequence[str],
    curves: Sequence[LossCurve] = (),
) -> str:
    """The whole page: all it shows and offers to save is inside.

    Args:
        name: What it is about.
        folder: The sweep's folder, for its spec and its results; None for a table.
        findings: What is known.
        figures: In their inline form.
        tones: Every colour that the figures use.
        plan: The plan, where there is one.
        notes: Warnings beside those of the fit.
        curves: Those of the figure of curves, in its order.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    files = resources.files("flopsfit_ds.report.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files.joinpath("page.html").read_text(encoding="utf-8"))
    every_tone = tuple(dict.fromkeys((*FIXED, *tones)))
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    saved = _saved(folder)
    embedded: dict[str, Any] = {"colours": {tone.name: tone.light for tone in every_tone}, "files": saved}
    plane = next((figure.plane for figure in figures if figure.plane is not None), None)
    if plane is not None:
        embedded["curve-data"] = {"plane": asdict(plane), "runs": _curve_facts(curves, findings)}
    return template.render(
        name=name,
        many=len(findings.points) > _MANY,
        script=Markup(script),
        policy=_policy(script),
        embedded={key: Markup(_for_script(value)) for key, value in embedded.items()},
        outlook=outlook(findings, plan),
        conduct=conduct(findings.records),
        choices=embedded.get("curve-data", {}).get("runs", []),
        style=Markup(files.joinpath("page.css").read_text(encoding="utf-8")),
        light=Markup(css_variables(every_tone, "light")),
        dark=Markup(css_variables(every_tone, "dark")),
        figures={figure.name: Markup(figure.inline) for figure in figures},
        summary=_summary(findings),
        loss_unit=findings.loss_unit,
        headline=_headline(findings),
        onward=_onward(findings),
        findings=findings,
        has_minima=any(budget.num_params for budget in findings.isoflop.budgets),
        fit=findings.fit,
        warnings=_warnings(findings, notes),
        optima=optima_table(findings.isoflop, findings.fit),
        formula=[] if findings.fit is None else _formulas(findings.fit),
        law=law_table(findings.fit) if findings.fit is not None else None,
        checks=_checks(findings),
        runs=runs_table(findings),
        machines=machines_table(findings),
        table=points_table(findings),
        excluded=excluded_table(findings),
        retried=[record for record in findings.records if len(record.attempts) > 1],
        facts=facts(folder, findings, plan),
        spec=None if folder is None else spec_text(folder),
        saved=list(saved),
        seconds=format_seconds,
        flops=format_flops,
    )


def _summary(findings: Findings) -> str:
    records = findings.records
    completed = sum(record.status == "completed" for record in records)
    words = [f"{completed} of {len(records)} runs completed"] if records else []
    words.append(f"{len(findings.points)} points {'in the fit' if findings.fit else 'usable'}")
    if findings.excluded:
        words.append(f"{len(findings.excluded)} left out")
    spent = sum(record.observed.flops for record in records if record.observed is not None)
    if spent:
        words.append(f"{format_flops(spent)} FLOPs trained")
    devices = list(dict.fromkeys(record.device for record in records))
    return " · ".join([*words, *devices])


def _headline(findings: Findings) -> dict[str, Any] | None:
    """The numbers of the answer; None where there is no law with an optimum."""
    target, prediction, fit = findings.target, findings.prediction, findings.fit
    if target is None or prediction is None or fit is None:
        return None
    level = f"{fit.level:.0%}"
    largest = max(point.compute_flops for point in findings.points)
    low, high = target.flat_band
    size = COUNT_WORDS[findings.parameter_count]
    return {
        "compute": format_flops(target.compute),
        "size": size,
        "beyond": format_ratio(target.compute / largest) if target.compute > 1.01 * largest else None,
        "num_params": format_count(target.num_params),
        "num_tokens": format_count(target.num_tokens),
        "loss": loss_text(prediction.loss),
        "flat": f"{format_count(low)} to {format_count(high)}",
        "level": level,
        "cards": [
            (size, format_count(target.num_params), span(target.intervals.get("num_params"), format_count)),
            (
                "training tokens",
                format_count(target.num_tokens),
                span(target.intervals.get("num_tokens"), format_count),
            ),
            (
                "tokens per parameter",
                f"{target.tokens_per_parameter:.3g}",
                span(target.intervals.get("tokens_per_parameter"), lambda value: f"{value:.3g}"),
            ),
            ("held-out loss", loss_text(prediction.loss), span(prediction.interval, loss_text)),
        ],
        "isoflop_size": _isoflop_size(findings, target.compute),
    }


def _onward(findings: Findings) -> str | None:
    """The prediction where there is one without an optimum: the next run on the ray of all runs."""
    guess = findings.prediction
    if guess is None or findings.target is not None:
        return None
    low, high = loss_text(guess.interval.low), loss_text(guess.interval.high)
    return (
        f"Further on that line, {format_count(guess.num_params)} {COUNT_WORDS[findings.parameter_count]} on "
        f"{format_count(guess.num_tokens)} tokens ({format_flops(guess.compute)} FLOPs) are predicted to reach "
        f"{loss_text(guess.loss)}; the {guess.level:.0%} interval of one run is {low} to {high}."
    )


def _checks(findings: Findings) -> dict[str, Any] | None:
    """The diagnostics; None where there are none."""
    fit = findings.fit
    if fit is None or fit.diagnostics is None:
        return None
    found = fit.diagnostics
    return {"sentences": check_sentences(fit), "backtest": backtest_table(found), "forms": forms_table(found)}


def _formulas(fit: ScalingFit) -> list[Markup]:
    """The law in symbols, and in numbers where they can be put in."""
    numbers = in_numbers(fit.law)
    return [typeset(text) for text in (fit.law.formula, numbers) if text is not None]


def _isoflop_size(findings: Findings, compute: float) -> str | None:
    """What the valleys alone say, with no law of loss: a second opinion beside the headline."""
    law = findings.isoflop.size_law
    if law is None:
        return None
    value = law.at(compute)
    return format_count(value) if math.isfinite(value) else None


def _warnings(findings: Findings, notes: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each kind once, with what was seen; then what else a reader must know."""
    kinds: dict[str, list[str]] = {}
    for warning in findings.warnings:
        kinds.setdefault(warning.code.replace("_", " "), []).append(warning.message)
    return [*kinds.items(), *(("", [note]) for note in notes)]


def _saved(folder: SweepFolder | None) -> dict[str, str]:
    """Files that the page carries: name -> text."""
    if folder is None:
        return {}
    found: dict[str, str] = {}
    for path in (folder.spec, folder.results):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.read_text(encoding="utf-8", errors="replace")
    return found


def _curve_facts(curves: Sequence[LossCurve], findings: Findings) -> list[dict[str, Any]]:
    """Of each curve: the id of its mark, its name, and what is shown once it is chosen."""
    records = {record.run_id: record for record in findings.records}
    found: list[dict[str, Any]] = []
    for number, curve in enumerate(curves):
        record, facts = records[curve.run_id], []
        facts.append(("parameters", format_count(record.planned.num_params_total)))
        facts.append(("tokens", format_count(record.planned.num_tokens)))
        facts.append(("held-out loss", record.status if record.loss is None else loss_text(record.loss)))
        facts.append(("learning rate", f"{record.learning_rate:.3g}"))
        if curve.gradient_norms[-1] is not None:
            facts.append(("last gradient norm", f"{curve.gradient_norms[-1]:.3g}"))
        seen = record.observed
        if seen is not None:
            facts.append(("time", format_seconds(seen.seconds)))
            facts += [("tokens/s", format_count(seen.tokens_per_second))] if seen.tokens_per_second else []
            used = seen.model_flops_utilisation
            facts += [("MFU", f"{used:.1%}")] if used is not None else []
        found.append({"id": f"curves-tip-{number}", "label": curve.label, "facts": facts})
    return found


def _for_script(value: Any) -> str:
    """JSON that no parser of HTML takes for markup."""
    text = json.dumps(value, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(script: str) -> str:
    """What a browser may do for this page: run this very script, and show what is inside."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
