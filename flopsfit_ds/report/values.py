"""Numbers as the report writes them, beside those of `units`."""

from __future__ import annotations

import math

_SMALL = 0.5  # above it e^x - 1 and x differ so much that "per cent" misleads
_NO_BOUND = 20.0  # a factor of 5e8 is none


def loss_text(loss: float) -> str:
    """A loss with four decimals."""
    return f"{loss:.4f}"


def number_text(value: float, digits: int = 4) -> str:
    """A plain number with so many digits: `0.3392`, `1.466e10`."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def log_error_text(error: float) -> str:
    """A standard error of a logarithm: as per cent where it is small, else as a factor."""
    if error < _SMALL:
        return f"{100 * math.expm1(error):.1f}%"
    return f"a factor of {math.exp(error):.2g}" if error < _NO_BOUND else "no bound"
