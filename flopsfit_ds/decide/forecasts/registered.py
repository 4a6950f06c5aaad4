"""A forecast that is written down before the run: what is predicted, all it rests on, and a digest that shows changes.

The digest is SHA-256 of the content in canonical JSON (sorted keys, no spaces). It shows that the content changed since
the digest was made. It does not show who made either: whoever changes the content can make a new digest. Published
where others see when, it shows that the forecast was there before the run.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import flopsfit_ds
from flopsfit_ds.base.errors import FitError, RecordError
from flopsfit_ds.base.storage import FIT_FORMAT, FORECAST_FORMAT, KIND_WORDS, atomic_write, json_converter, kind_of
from flopsfit_ds.fit.forecast.prediction import PredictionModel
from flopsfit_ds.fit.result import load_fit_dict

FORMAT = FORECAST_FORMAT
VERSION = 1  # of the file: raised when another reading of it would be needed
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels of the intervals that are printed and scored one by one."""
PROBABILITIES = tuple(k / 100 for k in range(1, 100))
"""Quantiles that are kept, so that the whole of a forecast can be scored and not its intervals alone."""


@dataclass(frozen=True)
class Band:
    """An interval of losses at a level, both ends included.

    Attributes:
        level: Its probability.
        low: Lower end.
        high: Upper end.
    """

    level: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What was predicted, of one run that had not been trained.

    Attributes:
        made_at: ISO 8601, in UTC, by the clock of the machine.
        compute: FLOPs of the run.
        num_params: Its parameters.
        num_tokens: Its training tokens.
        loss: Centre of the forecast.
        intervals: Where the loss of one such run is expected, by rising level.
        quantiles: Losses at `PROBABILITIES`.
        extrapolation: Compute over the largest compute among the points.
        rests_on: Points, law, weights of forms, options, versions and hashes, as plain values.
    """

    made_at: str
    compute: float
    num_params: float
    num_tokens: float
    loss: float
    intervals: tuple[Band, ...]
    quantiles: tuple[float, ...]
    extrapolation: float
    rests_on: dict[str, Any]


@dataclass(frozen=True)
class Registered:
    """A forecast with its digest.

    Attributes:
        forecast: The forecast.
        digest: `sha256:` and 64 hexadecimal digits.
    """

    forecast: Forecast
    digest: str

    def to_json_dict(self) -> dict[str, Any]:
        """Format, version, content and digest; `load_forecast` reads it."""
        content = json_converter(Forecast).dump_python(self.forecast, mode="json")
        return {"format": FORMAT, "version": VERSION, "content": content, "digest": self.digest}

    def write(self, path: Path) -> None:
        """Write the file, whole.

        Raises:
            FitError: There is a file already: a registered forecast is not overwritten.
            SweepFolderError: It cannot be written.
        """
        if path.exists():
            raise FitError(f"{path} exists: a registered forecast is never overwritten; choose another name with -o")
        atomic_write(path, json.dumps(self.to_json_dict(), indent=1, allow_nan=False) + "\n")


def register_forecast(
    fit_file: str | Path,
    compute: float | None = None,
    *,
    num_params: float | None = None,
    num_tokens: float | None = None,
    levels: Sequence[float] = LEVELS,
) -> Registered:
    """Forecast one run from a fit's JSON, with all that the forecast rests on.

    Args:
        fit_file: Written by `flopsfit-ds fit`, or the fit.json of a sweep folder, whose spec.yaml is then kept too.
        compute: FLOPs; alone it means the compute-optimal size.
        num_params: Parameters of the run.
        num_tokens: Tokens of the run.
        levels: Levels of the intervals.

    Raises:
        FitError: The file is no fit or holds no points, the question cannot be answered, or an interval has no end.
    """
    path = Path(fit_file)
    fit = load_fit_dict(path)
    if not fit.get("points"):
        raise FitError(f"{path} was written before fits kept their points; write it again with flopsfit-ds fit")
    model = PredictionModel.from_json_dict(fit.get("prediction") or {})
    ordered = sorted({float(level) for level in levels})
    if not ordered:
        raise FitError("give at least one level for the intervals, such as 0.9")

    def interval(level: float) -> Band:
        found = model.predict(compute, num_params=num_params, num_tokens=num_tokens, level=level).interval
        if not np.isfinite([found.low, found.high]).all():
            raise FitError(f"the {level:.0%} interval has no end ({found.low:.3g} to {found.high:.3g}): ask nearer")
        return Band(level, found.low, found.high)

    centre = model.predict(compute, num_params=num_params, num_tokens=num_tokens)
    forecast = Forecast(
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        compute=centre.compute,
        num_params=centre.num_params,
        num_tokens=centre.num_tokens,
        loss=centre.loss,
        intervals=tuple(interval(level) for level in ordered),
        quantiles=_quantiles(interval, centre.loss),
        extrapolation=centre.extrapolation,
        rests_on={**_evidence(path, fit, model), "width": centre.rests_on},
    )
    return Registered(forecast, digest_of(json_converter(Forecast).dump_python(forecast, mode="json")))


def _quantiles(interval: Any, centre: float) -> tuple[float, ...]:
    """Losses at PROBABILITIES from the ends of central intervals."""
    half = [interval(1.0 - 2.0 * p) for p in PROBABILITIES if p < 0.5]
    return (*(band.low for band in half), centre, *(band.high for band in reversed(half)))


def _evidence(path: Path, fit: dict[str, Any], model: PredictionModel) -> dict[str, Any]:
    """All that the forecast rests on, in JSON's types."""
    weights: dict[str, float] = {}
    for member in model.members:
        weights[member.law] = weights.get(member.law, 0.0) + member.weight
    spec = path.parent / "spec.yaml"
    return {
        "law": fit["law"],
        "weights_of_forms": weights,
        "points": fit["points"],
        "excluded": fit["excluded"],
        "warnings": fit["warnings"],
        "options": {"law": fit["law"]["form"], "level": fit["level"], **fit["audit"]},
        "spec": spec.read_text(encoding="utf-8") if spec.is_file() else None,
        "fit_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "program": {
            "package": flopsfit_ds.__version__,
            "package_sha256": program_digest(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def program_digest() -> str:
    """SHA-256 over the names and bytes of this package's Python files, in order."""
    root = Path(flopsfit_ds.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def digest_of(content: Any) -> str:
    """`sha256:` of a value in canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def load_forecast(path: str | Path) -> Registered:
    """Read a registered forecast, and check that nothing in it changed.

    Raises:
        FitError: The file cannot be read, or is no forecast of this version.
        RecordError: The content does not have the digest that was registered with it.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_bytes(), object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except OSError as error:
        raise FitError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        kind = kind_of(path)
        if kind not in (None, "forecast"):
            raise FitError(
                f"{path} is no forecast but {KIND_WORDS[kind]}: write one with flopsfit-ds register FIT.JSON "
                "--compute FLOPS -o FILE"
            ) from error
        raise RecordError(f"{path} is no whole JSON file: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        is_fit = isinstance(document, dict) and FIT_FORMAT in (
            document.get("format"),
            (document.get("content") or {}).get("format") if isinstance(document.get("content"), dict) else None,
        )
        what = "a fit: register a forecast of it" if is_fit else "no forecast: write one"
        raise FitError(f"{path} is {what} with flopsfit-ds register FIT.JSON --compute FLOPS -o FILE")
    if document.get("version") != VERSION:
        raise FitError(f"{path} has version {document.get('version')}, this package reads {VERSION}")
    registered, found = document.get("digest"), digest_of(document.get("content"))
    unknown = sorted(document.keys() - {"format", "version", "content", "digest"})
    if registered != found or unknown:
        why = (
            f"{', '.join(unknown)} was added" if unknown else f"its content gives {found}, registered was {registered}"
        )
        raise RecordError(f"{path} was changed after it was registered: {why}; score the file as it was published")
    try:
        forecast = json_converter(Forecast).validate_python(document["content"])
    except ValueError as error:
        raise FitError(f"{path} is no forecast of this version: {str(error).splitlines()[0]}") from error
    if len(forecast.quantiles) != len(PROBABILITIES):
        raise FitError(f"{path} holds {len(forecast.quantiles)} quantiles where {len(PROBABILITIES)} are needed")
    return Registered(forecast, found)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A second value under one key would be read by some and not by others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
