"""Which share of its parameters a module uses: for a token, and in matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flopsfit_ds.base.units import format_count
from flopsfit_ds.simulate.counting.look import Seen

_FAR_BELOW = 0.25
"""Of 2 FLOPs a token and parameter of a matrix: less means that the products are hidden from the count."""


def active_params(seen: Seen, other: Seen | None, parameters: Mapping[str, Any], tokens: int) -> int | None:
    """Parameters that a token makes use of: all but the experts that it is not sent to.

    A parameter is an expert's if rows find their matrix in it by an index, or if the rows that it is multiplied by
    change with the choices made (`other` was seen with other choices), but for what is used less, and still used, where
    all tokens are alike: work that is done once for each distinct token leaves no parameter out. Its share is the rows
    it is multiplied by over the rows that were routed; a bias goes with the matrix of its module.

    Args:
        seen: With choices drawn at random.
        other: With all choices alike; None where no control flow depends on them.
        parameters: By name.
        tokens: Rows of the batch where no choice was seen.

    Returns:
        None where experts are used and the number of routed rows is not known.
    """
    uneven = set() if other is None else {name for name in parameters if _is_chosen(name, seen, other)}
    idle = 0.0
    biases = [name for name in parameters if name not in seen.used]
    for name in seen.grouped | uneven:
        size, experts = parameters[name].numel(), parameters[name].shape[0]
        routed = seen.routed.get(name)
        if routed is None:
            if tokens <= 2:
                return None
            rows = tokens
        elif name in seen.grouped and routed[0] % experts == 0:
            rows = routed[0] // experts
        else:
            rows = routed[0] // routed[1]
        share = 1 - min(1.0, seen.used.get(name, 0) / (2 * rows) / size)
        module = name.rpartition(".")[0]
        beside = [bias for bias in biases if bias.rpartition(".")[0] == module]
        biases = [bias for bias in biases if bias not in beside]
        idle += share * (size + sum(parameters[bias].numel() for bias in beside))
    return round(sum(parameter.numel() for parameter in parameters.values()) - idle)


def _is_chosen(name: str, seen: Seen, other: Seen) -> bool:
    drawn, alike = seen.used.get(name, 0), other.used.get(name, 0)
    return drawn != alike and not 0 < alike < drawn


def matrix_params(seen: Seen, sizes: Mapping[str, int]) -> int:
    """Parameters in matrices and kernels that something is multiplied by; a table that is also the head is one."""
    return sum(sizes[name] for name in seen.used)


def uncounted_matrices(seen: Seen, parameters: Mapping[str, Any], tokens: int, active: int | None) -> str | None:
    """What to say where far fewer FLOPs were counted than the matrices must take; None where the count can be right."""
    matrices = {
        name: parameter.numel()
        for name, parameter in parameters.items()
        if parameter.ndim >= 2 and name not in seen.looked_up and parameter.numel() > max(parameter.shape)
    }
    total = sum(parameter.numel() for parameter in parameters.values())
    idle = 0 if active is None else total - active
    least = 2 * tokens * (sum(matrices.values()) - idle)
    if seen.forward_flops >= _FAR_BELOW * least:
        return None
    unseen = sorted((name for name in matrices if name not in seen.used), key=lambda name: -matrices[name])
    return (
        f"{format_count(seen.forward_flops / tokens)} FLOPs a token were counted in the forward pass, where its "
        f"matrices of {format_count(least // (2 * tokens))} parameters take {format_count(least / tokens)}: "
        f"{', '.join(unseen[:4]) or 'its operations'} are used in operations whose FLOPs are not known; write these as "
        "matrix products, or accept 6 N D with approximate_flops=True (model.approximate_flops: true)"
    )
