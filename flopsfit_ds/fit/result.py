"""The result of a fit and its JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.storage import FIT_FORMAT, KIND_WORDS, kind_of
from flopsfit_ds.base.text import html_table
from flopsfit_ds.fit.checks.diagnostics import Diagnostics
from flopsfit_ds.fit.checks.warnings import FitWarning
from flopsfit_ds.fit.forecast.isoflop import BudgetMinimum, IsoflopDiagnostics
from flopsfit_ds.fit.forecast.optimum import LawAt, Optimum, ServingOptimum
from flopsfit_ds.fit.forecast.parts.frontier import FrontierSummary
from flopsfit_ds.fit.forecast.prediction import Prediction, PredictionModel, interval_dict
from flopsfit_ds.fit.losses import FloatArray
from flopsfit_ds.fit.points.points import Exclusion, Point
from flopsfit_ds.fit.solve.bootstrap import Draws
from flopsfit_ds.fit.solve.certificate import Certificate
from flopsfit_ds.fit.solve.intervals import Interval
from flopsfit_ds.spec.fit_options import COUNT_WORDS, ParameterCount

FORMAT = FIT_FORMAT
VERSION = 1  # of fit.json: raised when an old file would be misread
POINT_COLUMNS = tuple(field.name for field in fields(Point))


@dataclass(frozen=True)
class LawSummary:
    """The fitted law in the units of the data.

    The compute-only law has no B, beta, a and b: they are not numbers.

    Attributes:
        form: Name of the form.
        formula: The form, written out.
        source: Where it comes from.
        loss_floor: E.
        A: Amplitude of the size term.
        B: Amplitude of the data term.
        alpha: Exponent of the size term.
        beta: Exponent of the data term.
        a: N* ~ C^a where C/(N D) does not depend on N, as beyond the sizes of the points.
        b: D* ~ C^b there.
        own: Parameters that only this form has.
    """

    form: str
    formula: str
    source: str
    loss_floor: float
    A: float
    B: float
    alpha: float
    beta: float
    a: float
    b: float
    own: dict[str, float]


class ParameterRow(NamedTuple):
    """One parameter of a law with what is known of it.

    Attributes:
        name: As the JSON spells it.
        value: In the units of the data.
        standard_error: None without resamples.
        interval: None without resamples.
    """

    name: str
    value: float
    standard_error: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Audit:
    """How the fit was made, for a machine to check.

    Attributes:
        package_version: Of this package.
        numpy_version: Of numpy.
        python_version: Of Python.
        loss: Name of the loss function.
        huber_delta: None for squared losses.
        optimiser: In words.
        bootstrap: What was resampled; None without resamples.
        bootstrap_samples: Resamples that were fitted.
        bootstrap_seed: Of the generator.
        compute_rule: How compute divides into N and D.
        largest_weight: Largest over smallest weight of the points, by their evaluation errors and the spread of their
            seeds; None where all weigh alike.
        points_sha256: Of the points that entered, in canonical JSON.
        parameters: What N counts; None where the source does not say.
    """

    package_version: str
    numpy_version: str
    python_version: str
    loss: str
    huber_delta: float | None
    optimiser: str
    bootstrap: str | None
    bootstrap_samples: int
    bootstrap_seed: int
    compute_rule: str
    largest_weight: float | None
    points_sha256: str
    parameters: ParameterCount | None = None


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A fitted scaling law with all that supports it.

    Attributes:
        law: The law in plain units.
        objective: Summed score at the optimum.
        standard_errors: Name -> standard deviation over the resamples; empty without resamples.
        intervals: Name -> confidence interval at `level`; empty without resamples.
        certificate: Starts, agreement, gradient, active bounds.
        isoflop: Valleys and envelope.
        optima: The optimum at each budget of the data, and at the target.
        warnings: What a reader must know.
        excluded: Rows and runs that did not enter.
        points: Those that did.
        residuals: ln(predicted) - ln(observed) of each point.
        level: Probability of the intervals.
        at: The law, ready to be evaluated.
        prediction: The model behind `predict`.
        draws: The resampled fits; None without resamples.
        diagnostics: What could be wrong; None where they were not asked for.
        audit: How it was made.
        frontier: Loss at the best size of each budget against compute; None with too few minima.
        target_compute: FLOPs of the run to be predicted.
    """

    law: LawSummary
    objective: float
    standard_errors: dict[str, float]
    intervals: dict[str, Interval]
    certificate: Certificate
    isoflop: IsoflopDiagnostics
    optima: tuple[Optimum, ...]
    warnings: tuple[FitWarning, ...]
    excluded: tuple[Exclusion, ...]
    points: tuple[Point, ...]
    residuals: FloatArray
    level: float
    at: LawAt
    prediction: PredictionModel
    draws: Draws | None
    diagnostics: Diagnostics | None
    audit: Audit
    frontier: FrontierSummary | None
    target_compute: float

    def counting(self, parameters: ParameterCount | None) -> "ScalingFit":
        """The same fit, which says what N counts."""
        return replace(self, audit=replace(self.audit, parameters=parameters))

    @property
    def parameter_rows(self) -> tuple[ParameterRow, ...]:
        """Every parameter that the law has: the table that terminal, page and JSON show."""
        named = {name: getattr(self.law, name) for name in ("loss_floor", "A", "B", "alpha", "beta", "a", "b")}
        return tuple(
            ParameterRow(name, value, self.standard_errors.get(name), self.intervals.get(name))
            for name, value in {**named, **self.law.own}.items()
            if not math.isnan(value)
        )

    def predict(
        self,
        compute: float | None = None,
        *,
        num_params: float | None = None,
        num_tokens: float | None = None,
        unique_tokens: float | None = None,
        level: float | None = None,
    ) -> Prediction:
        """Loss at the optimum of a budget, or at given sizes; see `PredictionModel.predict`."""
        return self.prediction.predict(
            compute, num_params=num_params, num_tokens=num_tokens, unique_tokens=unique_tokens, level=level
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the law with its parameters."""
        rows = [
            (row.name, f"{row.value:.4g}", "not known" if row.standard_error is None else f"{row.standard_error:.2g}")
            for row in self.parameter_rows
        ]
        return html_table(("parameter", "value", "standard error"), rows, f"{self.law.form}: {self.law.formula}")

    @property
    def told_optima(self) -> tuple[Optimum, ...]:
        """The optima as page, terminal and JSON tell them: with the loss and interval that `predict` gives."""
        return tuple(self._told(optimum) for optimum in self.optima)

    def _told(self, optimum: Optimum) -> Optimum:
        there = self.predict(optimum.compute)
        intervals = {**optimum.intervals, "loss": there.interval} if "loss" in optimum.intervals else optimum.intervals
        return replace(optimum, loss=there.loss, intervals=intervals)

    def optimum(self, compute: float) -> Optimum:
        """N*, D*, L* and the flat band at this compute; with intervals where it is one of `optima`."""
        for known in self.optima:
            if math.isclose(known.compute, compute, rel_tol=1e-9):
                return known
        return self.at.optimum(compute)

    def serving_optimum(self, compute: float, inference_tokens: float) -> ServingOptimum:
        """The optimum for a model that will serve tokens; see `LawAt.serving_optimum`."""
        return self.at.serving_optimum(compute, inference_tokens)

    def to_json_dict(self) -> dict[str, Any]:
        """The documented interface, version 1; unbounded and missing numbers are None.

        format, version: what this is; a reader refuses other versions.
        law: {form, formula, source, loss_floor, A, B, alpha, beta, a, b} and the form's own parameters.
        objective: the summed score at the optimum.
        standard_errors, intervals: by name; intervals are {low, high} at `level`, confidence intervals of parameters.
        certificate: {starts, best_share, distinct_minima, gradient_norm, active_bounds, iterations}.
        isoflop: {budgets: [BudgetMinimum], size_law, envelope, envelope_law}.
        points: {columns: names of `Point`'s attributes, rows: [[value, ...]]}, those that entered.
        optima: [{compute, num_params, num_tokens, loss, tokens_per_parameter, flat_band, intervals}];
            the loss is that of `predict`.
        warnings: [{code, message}]; excluded: [{row, name, reason}]; num_points.
        frontier: see `frontier.FrontierSummary`; None without minima enough. target_compute: FLOPs.
        diagnostics: see `diagnostics.Diagnostics`; None where they were not asked for.
        audit: see `Audit`.
        prediction: all that `predict` needs, see `prediction.PredictionModel`.
        serving_optimum: only from `fit --inference-tokens`, see `optimum.ServingOptimum`.
        """
        rows, law = self.parameter_rows, self.law
        errors = {row.name: row.standard_error for row in rows if row.standard_error is not None}
        return {
            "format": FORMAT,
            "version": VERSION,
            "law": {
                "form": law.form,
                "formula": law.formula,
                "source": law.source,
                **{row.name: _finite(row.value) for row in rows},
            },
            "objective": self.objective,
            "standard_errors": {name: _finite(error) for name, error in errors.items()},
            "intervals": {row.name: interval_dict(row.interval) for row in rows if row.interval is not None},
            "level": self.level,
            "certificate": asdict(self.certificate),
            "isoflop": isoflop_dict(self.isoflop),
            "optima": [_plain(optimum_dict(o)) for o in self.told_optima],
            "warnings": [asdict(w) for w in self.warnings],
            "excluded": [asdict(e) for e in self.excluded],
            "num_points": len(self.points),
            "points": _points_dict(self.points),
            "frontier": None if self.frontier is None else asdict(self.frontier),
            "target_compute": self.target_compute,
            "diagnostics": _plain(self.diagnostics),
            "audit": asdict(self.audit),
            "prediction": self.prediction.to_json_dict(),
        }


def optimum_dict(optimum: Optimum) -> dict[str, Any]:
    """An optimum as JSON holds it."""
    content = {k: v for k, v in asdict(optimum).items() if k not in ("intervals", "flat_band")}
    low, high = optimum.flat_band
    return {
        **content,
        "flat_band": {"low": low, "high": high},
        "intervals": {name: interval_dict(value) for name, value in optimum.intervals.items()},
    }


def isoflop_dict(isoflop: IsoflopDiagnostics) -> dict[str, Any]:
    """Valleys and envelope as JSON holds them."""

    def budget(minimum: BudgetMinimum) -> dict[str, Any]:
        return _plain(asdict(minimum))

    return {
        "budgets": [budget(b) for b in isoflop.budgets],
        "size_law": None if isoflop.size_law is None else asdict(isoflop.size_law),
        "envelope": list(isoflop.envelope),
        "envelope_law": None if isoflop.envelope_law is None else asdict(isoflop.envelope_law),
    }


def _points_dict(points: Sequence[Point]) -> dict[str, Any]:
    """Points by column, without those that no point has."""
    named = [name for name in POINT_COLUMNS if any(getattr(point, name) is not None for point in points)]
    return {"columns": named, "rows": [[getattr(point, name) for name in named] for point in points]}


def load_fit_points(path: str | Path) -> tuple[Point, ...]:
    """The points that entered a fit, from its JSON file.

    Raises:
        FitError: The file cannot be read, is no fit, is of another version, or holds no points.
    """
    content = load_fit_dict(path).get("points")
    if content is None:
        raise FitError(f"{path} was written before fits kept their points; write it again with flopsfit-ds fit")
    try:
        columns = [str(name) for name in content["columns"]]
        return tuple(Point(**dict(zip(columns, row, strict=True))) for row in content["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise FitError(f"{path}: its points cannot be read: {error!r}; write it again with flopsfit-ds fit") from error


def load_prediction_model(path: str | Path) -> PredictionModel:
    """The prediction part of a fit's JSON file.

    Raises:
        FitError: The file cannot be read, is no fit, or is of another version.
    """
    return PredictionModel.from_json_dict(load_fit_dict(path).get("prediction") or {})


def load_warnings(path: str | Path) -> tuple[FitWarning, ...]:
    """The warnings of a fit's JSON file, which its predictions inherit.

    Raises:
        FitError: The file cannot be read, is no fit, or is of another version.
    """
    try:
        return tuple(FitWarning(str(w["code"]), str(w["message"])) for w in load_fit_dict(path)["warnings"])
    except (KeyError, TypeError) as error:
        raise FitError(f"{path} misses its warnings: {error!r}; write it again with flopsfit-ds fit") from error


def load_count(path: str | Path) -> ParameterCount | None:
    """What N counts in a fit's JSON file; None where that does not say.

    Raises:
        FitError: The file cannot be read, is no fit, or is of another version.
    """
    audit = load_fit_dict(path).get("audit")
    found = audit.get("parameters") if isinstance(audit, dict) else None
    return next((count for count in COUNT_WORDS if count == found), None)


def is_fit(path: str | Path) -> bool:
    """Whether a file is the JSON of a fit, of any version; False where it cannot be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    inner = content.get("content") if isinstance(content, dict) and "crc32" in content else content
    return isinstance(inner, dict) and inner.get("format") == FORMAT


def load_fit_dict(path: str | Path) -> dict[str, Any]:
    """What `ScalingFit.to_json_dict` gave, from a file.

    Raises:
        FitError: The file cannot be read, is no fit, or is of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FitError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FitError(_no_fit(Path(path), f"no JSON ({error})")) from error
    if isinstance(content, dict) and "crc32" in content:
        content = content.get("content")  # fit.json of a sweep folder carries a checksum about it
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FitError(_no_fit(Path(path), "other JSON"))
    if content.get("version") != VERSION:
        raise FitError(f"{path} has version {content.get('version')}, this package reads {VERSION}; fit again")
    return content


def _no_fit(path: Path, otherwise: str) -> str:
    kind = kind_of(path)
    found = otherwise if kind is None else KIND_WORDS[kind]
    return f"{path} is no fit but {found}: write one with flopsfit-ds fit DATA -o fit.json"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Nested containers with JSON's types, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return _finite(float(value))
