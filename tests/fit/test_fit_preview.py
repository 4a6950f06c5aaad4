"""Before spending: what a planned sweep would tell, and plans that cannot identify a law."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.base.presets import shipped_specs
from flopsfit_ds.fit import PlannedPoint, Point, PriorLaw, fit_scaling_law, preview_design
from flopsfit_ds.fit.preview import load_prior
from flopsfit_ds.fit.run_noise import usual_noise

QUICKSTART = (
    (20088, 637952, 99949215744, 2.15057),
    (13128, 1033216, 99982245888, 2.09593),
    (24876, 567296, 99989323776, 2.17355),
    (4836, 2630656, 100007018496, 2.27986),
    (40500, 336896, 100130881536, 2.37740),
    (67824, 521216, 249783386112, 2.09235),
    (40500, 840704, 249870680064, 1.94173),
    (20088, 1595392, 249953255424, 1.88395),
    (24876, 1418240, 249973309440, 1.89919),
    (13128, 2583552, 250005159936, 1.94033),
    (13128, 6458368, 624963354624, 1.87717),
    (24876, 3546112, 625023516672, 1.75849),
    (40500, 2103296, 625133223936, 1.70731),
    (67824, 1304576, 625194565632, 1.69671),
    (102060, 889856, 625319608320, 1.77062),
)
"""Parameters, tokens, FLOPs and held-out loss of the quickstart's runs, trained on two CPU cores."""


def grid(sizes: int = 7, budgets: tuple[float, ...] = (1e18, 3e18, 1e19, 3e19)) -> list[PlannedPoint]:
    points: list[PlannedPoint] = []
    for budget in budgets:
        centre = math.sqrt(budget / 6 / 20)
        points += [PlannedPoint(n, budget / 6 / n) for n in np.geomspace(centre / 4, centre * 4, sizes)]
    return points


def test_expected_errors_are_those_of_repeated_sweeps() -> None:
    planned, prior, noise = grid(), PriorLaw(), 0.003
    preview = preview_design(planned, noise=noise, target_compute=1e21, loss="squared_log")
    rng = np.random.default_rng(0)
    log_sizes, log_losses = [], []
    for _ in range(60):
        points = [
            Point(
                p.num_params,
                p.num_tokens,
                (prior.loss_floor + prior.A / p.num_params**prior.alpha + prior.B / p.num_tokens**prior.beta)
                * math.exp(noise * rng.standard_normal()),
            )
            for p in planned
        ]
        fit = fit_scaling_law(points, loss="squared_log", bootstrap_samples=0, other_forms=False, diagnostics=False)
        optimum = fit.optimum(1e21)
        log_sizes.append(math.log(optimum.num_params))
        log_losses.append(math.log(optimum.loss))
    assert float(np.std(log_sizes)) == pytest.approx(preview.log_num_params_standard_error, rel=0.35)
    assert float(np.std(log_losses)) == pytest.approx(preview.log_loss_standard_error, rel=0.35)


def test_more_points_and_less_noise_tell_more() -> None:
    few, many = preview_design(grid(5)), preview_design(grid(15))
    assert many.log_num_params_standard_error < few.log_num_params_standard_error
    half = preview_design(grid(5), noise=0.0025, loss="squared_log")
    whole = preview_design(grid(5), noise=0.005, loss="squared_log")
    assert half.log_loss_standard_error == pytest.approx(0.5 * whole.log_loss_standard_error)
    assert sum(p.share_of_flops for p in few.points) == pytest.approx(1.0)
    assert all(p.adds >= -1e-9 for p in few.points)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([PlannedPoint(n, 20 * n) for n in np.geomspace(1e7, 1e9, 8)], "single ray of about 20 tokens"),
        (grid()[:5], "5 distinct points"),
        ([PlannedPoint(1e8, d) for d in np.geomspace(1e8, 1e10, 8)], "one size"),
        ([PlannedPoint(n, d) for n in (1e8, 1.1e8, 1.2e8) for d in (2e9, 2.5e9, 3e9, 3.3e9)], "would be known to"),
        ([PlannedPoint(n, d) for n in (1e8, 1e9) for d in np.geomspace(1e9, 1e11, 8)], "2 different sizes"),
        (4 * [p for k, p in enumerate(grid(3, (1e18, 1e19))) if k != 1], "5 distinct points"),
    ],
)
def test_a_plan_that_cannot_identify_the_law_is_refused_with_a_remedy(points: list[PlannedPoint], reason: str) -> None:
    with pytest.raises(FitError, match=reason) as caught:
        preview_design(points)
    assert "train" in str(caught.value) or "add" in str(caught.value)


def test_the_remedy_mends_the_plan() -> None:
    ray = [PlannedPoint(n, 20 * n) for n in np.geomspace(1e7, 1e9, 8)]
    with pytest.raises(FitError, match="a quarter of its tokens"):
        preview_design(ray)
    mended = preview_design([*ray, *(PlannedPoint(p.num_params, 0.25 * p.num_tokens) for p in ray)])
    assert mended.log_num_params_standard_error < math.log(3)


def test_targets_and_priors_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(FitError, match="target compute"):
            preview_design(grid(), target_compute=target)
    law = {"form": "chinchilla", "loss_floor": 1.8, "A": 400.0, "B": 2000.0, "beta": 0.3}
    for content in ({"law": law}, {"law": {**law, "alpha": -0.3}}, {}):
        (tmp_path / "fit.json").write_text(json.dumps({"format": "flopsfit-ds/fit", "version": 1, **content}))
        with pytest.raises(FitError):
            load_prior(tmp_path / "fit.json")


def run(*arguments: str) -> tuple[int, str]:
    import contextlib
    import io

    from flopsfit_ds.cli.main import run as main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue() + err.getvalue()


def test_the_shipped_specs_can_all_be_previewed() -> None:
    assert "isoflop_8xh100" in shipped_specs()
    code, output = run("preview", "isoflop_8xh100")
    assert code == 0
    assert "N*" in output
    assert "GPU h" in output


def test_a_degenerate_spec_is_refused() -> None:
    code, output = run("preview", "isoflop_8xh100", "design.compute_budgets=[1e19]")
    assert code == 2
    assert "one compute budget" in output


def test_what_is_promised_of_the_quickstart_is_what_its_fit_gives() -> None:
    points = [Point(n, d, loss, flops=flops) for n, d, flops, loss in QUICKSTART]
    fit = fit_scaling_law(points, bootstrap_samples=200, other_forms=False, diagnostics=False)
    interval = fit.optima[-1].intervals["num_params"]
    obtained = math.log(interval.high / interval.low) / (2 * 1.645)
    planned = [PlannedPoint(p.num_params, p.num_tokens, p.flops) for p in points]
    promised = preview_design(planned, target_compute=fit.optima[-1].compute).log_num_params_standard_error
    assert 1 / 1.5 < promised / obtained < 1.5


def test_small_runs_and_a_wide_range_of_compute_lie_farther_off_a_law() -> None:
    near = [1e19, 3e19, 1e20]
    assert usual_noise([each / 1e8 for each in near]) > 2 * usual_noise(near)
    assert usual_noise([1e17, *near, 1e22]) > 1.5 * usual_noise(near)
    assert preview_design(grid()).noise == usual_noise([p.as_point().compute_flops for p in grid()])


def test_the_price_counts_every_rate_and_the_tuning() -> None:
    def priced(*changes: str) -> dict[str, float]:
        code, output = run("preview", "isoflop_8xh100", "--json", *changes)
        assert code == 0, output
        return json.loads(output)["price"]

    once = priced()
    tuned = priced("training.learning_rate={rule: steplaw, tune: {num_params: [50M, 100M], multipliers: [0.5, 1, 2]}}")
    assert (once["num_runs"], once["tuning_runs"], tuned["num_runs"], tuned["tuning_runs"]) == (30, 0, 36, 6)
    assert tuned["gpu_hours"] == pytest.approx(once["gpu_hours"] + tuned["tuning_gpu_hours"])
    assert once["money"] == pytest.approx(2.5 * once["gpu_hours"])
    twice = priced("training.learning_rate={rule: steplaw, multipliers: [1, 2]}")
    assert twice["gpu_hours"] == pytest.approx(2 * once["gpu_hours"], rel=0.01)
