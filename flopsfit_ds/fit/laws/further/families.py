"""Families of models: one law for all, laws that share their exponents, or a law for each."""

from flopsfit_ds.fit.laws.base import Inputs
from flopsfit_ds.fit.laws.further.log_linear import Feature, LogLinear


class OneLaw(LogLinear):
    """L = E + A / N^alpha + B / D^beta, whatever the column says: the form that the others must beat."""

    name = "one-law"
    formula = "L = E + A/N^alpha + B/D^beta"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, eq. 2"

    def tilted(self, inputs: Inputs) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
        """None."""
        return (), ()


class SharedExponents(OneLaw):
    """Each family has its own E, A and B; alpha and beta are those of all."""

    name = "shared-exponents"
    formula = "L = E_f + A_f/N^alpha + B_f/D^beta, for each family f"
    source = "the terms of Hoffmann et al. 2022, eq. 2; exponents shared as by Ruan et al. 2024, arXiv:2405.10938"

    def __init__(self, families: int) -> None:
        super().__init__(families)


class OwnExponents(OneLaw):
    """Each family has a law of its own."""

    name = "own-exponents"
    formula = "L = E_f + A_f/N^alpha_f + B_f/D^beta_f, for each family f"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, eq. 2, for each family"

    def __init__(self, families: int) -> None:
        super().__init__(families, own_exponents=True)
