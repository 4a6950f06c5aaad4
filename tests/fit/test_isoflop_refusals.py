"""A budget that tells no minimum says why, and gives none."""

from __future__ import annotations

import math

from flopsfit_ds.fit import Point, isoflop_minima


def reasons(loss, sizes=(1e8, 2e8, 4e8, 8e8, 16e8)):
    """Of three budgets of these sizes, each loss a function of ln N about the middle."""
    points = [
        Point(
            n, budget / (6 * n), loss(math.log(n / 4e8)) - 0.1 * math.log10(budget), budget, compute_budget_flops=budget
        )
        for budget in (1e19, 1e20, 1e21)
        for n in sizes
    ]
    return [(each.num_params, each.refused) for each in isoflop_minima(points).budgets]


def test_a_valley_in_the_middle_has_a_minimum():
    assert all(size is not None and reason is None for size, reason in reasons(lambda x: 3 + 0.02 * x * x))


def test_losses_that_fall_to_the_largest_size_have_their_minimum_at_an_edge():
    found = reasons(lambda x: 3 + 0.02 * (x - 1.3) ** 2)
    assert all(size is None and "the largest size tried" in reason for size, reason in found)
    beyond = reasons(lambda x: 3 + 0.02 * (x - 4) ** 2)
    assert all(size is None and "try larger sizes" in reason for size, reason in beyond)


def test_losses_that_bend_downwards_have_none():
    found = reasons(lambda x: 3 - 0.02 * x * x)
    assert all(size is None and reason is not None for size, reason in found)
    assert any("do not curve upwards" in reason for _, reason in found)


def test_two_sizes_make_no_valley():
    found = reasons(lambda x: 3 + 0.02 * x * x, sizes=(2e8, 8e8))
    assert all(size is None and "a valley needs at least 3" in reason for size, reason in found)
