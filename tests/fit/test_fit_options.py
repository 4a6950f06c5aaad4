"""One fit, however it is asked for: options and their defaults are the same in spec, library and command line."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from flopsfit_ds.base.errors import FitError, SpecError
from flopsfit_ds.cli.fitting.fit import fit_command
from flopsfit_ds.cli.fitting.preview import preview_command
from flopsfit_ds.fit import fit_scaling_law, points_from_records, preview_design
from flopsfit_ds.fit.laws.registry import LAWS
from flopsfit_ds.spec import Fit, load_spec
from flopsfit_ds.spec.fit_options import DEFAULTS, LawName, LossName
from helpers.fit.planted_sweeps import sweep

OPTIONS = {field.name: getattr(DEFAULTS, field.name) for field in fields(DEFAULTS)}
SPEC = "name: a\ndesign: {method: points, points: [{num_params: 100000, num_tokens: 1000000}]}\n"


def defaults_of(function) -> dict[str, object]:
    found = inspect.signature(function).parameters.items()
    return {name: given.default for name, given in found if given.default is not inspect.Parameter.empty}


def test_spec_and_library_have_the_same_defaults() -> None:
    assert defaults_of(fit_scaling_law) == {**OPTIONS, "excluded": ()}
    spec = Fit().model_dump()
    assert defaults_of(points_from_records)["parameter_count"] == spec.pop("parameters")
    assert spec.pop("heldout") is None  # of a spec's further sets; a table holds the loss that it holds
    assert spec == {name: OPTIONS[name] for name in spec}


def test_a_preview_has_the_defaults_of_the_fit_to_come() -> None:
    library, command = defaults_of(preview_design), defaults_of(preview_command)
    for name in ("loss", "huber_delta", "target_compute"):
        assert library[name] == OPTIONS[name]
    assert command["noise"] == library["noise"]


def test_the_command_line_leaves_every_default_to_the_spec_and_tells_it() -> None:
    given = inspect.signature(fit_command, eval_str=True).parameters
    for name in Fit.model_fields:
        if name == "heldout":
            continue  # which loss of a sweep's records, told by the spec alone
        assert given[name].default is None
        default = getattr(Fit(), name)
        [option] = given[name].annotation.__metadata__
        if default is not None:
            assert option.help.rstrip(".").endswith(f" {default:g}" if isinstance(default, float) else f" {default}")


def test_every_form_of_law_has_its_name_in_a_spec() -> None:
    assert get_args(LawName) == tuple(LAWS)


@pytest.mark.parametrize("loss", get_args(LossName))
def test_spec_and_library_take_the_same_losses(loss: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"{SPEC}fit: {{loss: {loss}}}\n")
    options = load_spec(path).fit.for_points() | {"bootstrap_samples": 0, "other_forms": False, "diagnostics": False}
    assert fit_scaling_law(sweep()[1], **options).audit.loss == loss


def test_spec_and_library_refuse_the_same_number_of_resamples(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"{SPEC}fit: {{bootstrap_samples: 19}}\n")
    with pytest.raises(SpecError, match="or 20 or more"):
        load_spec(path)
    with pytest.raises(FitError, match="at least 20"):
        fit_scaling_law(sweep()[1], bootstrap_samples=19)
