"""Two recipes: a planted multiplier is found, two draws of one law are not told apart, and a crossing is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.decide.comparing.compare import Comparison, compare_runs
from flopsfit_ds.decide.sources import Source
from flopsfit_ds.fit import Point
from helpers.cli_in_process import invoke, run_json
from helpers.fit.planted_sweeps import write_csv

NOISE = 0.002


def loss(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


def runs(seed: int, of: Callable[[float, float], float] = loss, shift: float = 0.0) -> list[Point]:
    rng = np.random.default_rng(seed)
    points = []
    for budget in (1e18, 4e18, 1.6e19, 6.4e19, 2.56e20):
        for offset in np.linspace(-1.4, 1.4, 7):
            n = math.sqrt(budget / 120) * math.exp(offset + shift)
            d = budget / 6 / n
            value = of(n, d) * math.exp(NOISE * rng.standard_normal())
            points.append(Point(n, d, value, compute_budget_flops=budget))
    return points


def source(name: str, points: list[Point]) -> Source:
    return Source(name, ("table",), tuple(points), (), {}, None, (None,) * len(points))


def compared(a: list[Point], b: list[Point], **options) -> Comparison:
    first, second = (
        Source(name, ("table",), tuple(p), (), {}, None, (None,) * len(p)) for name, p in (("a", a), ("b", b))
    )
    return compare_runs(first, second, **options)


@pytest.fixture(scope="module")
def better() -> Comparison:
    """Every run of B is worth 1.3 times its compute."""
    root = math.sqrt(1.3)
    return compared(runs(1), runs(2, lambda n, d: loss(n * root, d * root)))


def test_a_planted_multiplier_is_found_by_laws_and_pairs(better):
    assert better.verdict == "B is better"
    for found in better.multipliers[:3]:
        assert found.interval.contains(1.3)
        assert found.interval.high < 2.0
    assert better.matched is not None
    assert len(better.matched.pairs) == 35
    assert better.matched.interval is not None
    assert better.matched.interval.contains(1.3)
    assert better.matched.interval.low > 1.15
    assert better.matched.interval.high < 1.45


def test_the_interval_widens_beyond_the_runs(better):
    widths = [math.log(m.interval.high / m.interval.low) for m in better.multipliers]
    assert widths[3] > 1.5 * widths[1]
    assert better.multipliers[3].beyond == pytest.approx(10.0)


def test_the_other_way_round_is_the_inverse(better):
    root = math.sqrt(1.3)
    turned = compared(runs(2, lambda n, d: loss(n * root, d * root)), runs(1))
    assert turned.verdict == "A is better"
    assert turned.multipliers[1].value == pytest.approx(1 / better.multipliers[1].value, rel=0.1)


@pytest.mark.parametrize("shift", [0.0, 0.1], ids=["pairs", "no pairs"])
def test_two_draws_of_one_law_are_not_told_apart(shift):
    found = compared(runs(3), runs(4, shift=shift))
    assert found.verdict == "no difference is shown"
    assert all(m.interval.contains(1.0) for m in found.multipliers)
    assert (found.matched is None) == (shift > 0)


def test_recipes_that_cross_are_told_where():
    turn = math.log(1.6e19)
    found = compared(runs(5), runs(6, lambda n, d: loss(n, d) * math.exp(-0.02 * (math.log(6 * n * d) - turn))))
    assert found.verdict == "they cross"
    assert found.crossing is not None
    assert found.crossing.interval.contains(1.6e19)
    assert math.log(found.crossing.interval.high / found.crossing.interval.low) < 2.0
    assert found.crossing.share > 0.9


def test_a_loss_that_is_never_reached_has_no_multiplier():
    found = compared(runs(7), runs(8, lambda n, d: loss(n, d) - 0.75), computes=[2e20])
    assert found.multipliers[0].value == math.inf
    assert found.to_json_dict()["multipliers"][0]["value"] is None


def test_recipes_without_shared_compute_are_refused():
    small = [replace(p, compute_budget_flops=None, num_tokens=p.num_tokens / 1e4) for p in runs(1)]
    with pytest.raises(FitError, match="share no range of compute"):
        compared(small, runs(2))


@pytest.mark.parametrize(
    ("options", "words"), [({"level": 1.0}, "level"), ({"computes": [-1.0]}, "positive"), ({"law": "none"}, "a: ")]
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(FitError, match=words):
        compared(runs(1), runs(2), **options)


def test_the_command_prints_text_json_a_figure_and_a_page(tmp_path):
    root = math.sqrt(1.5)
    a: Path = write_csv(tmp_path / "a.csv", runs(1))
    b: Path = write_csv(tmp_path / "b.csv", runs(2, lambda n, d: loss(n * root, d * root)))
    arguments = ("compare", a, b, "--compute", "3e19", "--figure", tmp_path / "c.svg")
    found = run_json(*arguments, "--json")
    (point,) = found["multipliers"]
    assert point["interval"]["low"] < 1.5 < point["interval"]["high"]
    tips = [element.text or "" for element in ElementTree.parse(tmp_path / "c.svg").iter() if "title" in element.tag]
    assert sum("a pair of runs" in tip for tip in tips) == 35
    code, output = invoke(*arguments)
    assert code == 0
    assert f"{point['value']:.3g}x" in output
    assert "B is better" in output
    assert json.dumps(found)
    odd = tmp_path / "a <i>.csv"
    odd.write_text(a.read_text())
    assert invoke("compare", odd, b, "--compute", "3e19", "--html", tmp_path / "c.html")[0] == 0
    page = (tmp_path / "c.html").read_text()
    assert f"needs {point['value']:.3g}x the compute of B to be as good at 3e19 FLOPs" in page
    assert "B is better" in page
    assert page.count("a pair of runs") == len(found["matched"]["pairs"]) == 35
    assert page.split("<h2>Runs of the same")[1].count("<tr><td") == 35
    assert "a &lt;i&gt;.csv" in page
    assert "<i>" not in page
    assert [word for word in ("src=", "http:", "https:", "url(h", "<script", "<link") if word in page] == []
