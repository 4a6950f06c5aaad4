"""Mixtures of experts: N counts the parameters a token meets, the column is ln(total parameters / N)."""

from flopsfit_ds.fit.laws.base import Inputs, Linearised, Term
from flopsfit_ds.fit.laws.further.log_linear import Feature, LogLinear
from flopsfit_ds.fit.losses import FloatArray


class EffectiveExperts(LogLinear):
    """A model is worth a dense one of N (T/N)^gamma parameters; the exponents are those of dense models."""

    name = "effective-parameters"
    formula = "L = E + A/(N*(T/N)^gamma)^alpha + B/D^beta, N active and T total parameters"
    source = "the effective parameter count of Clark et al. 2022, arXiv:2202.01169, in eq. 2 of Hoffmann et al. 2022"

    def __init__(self) -> None:
        super().__init__(tilts=("kappa",))

    def tilted(self, inputs: Inputs) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
        """The size term falls with the ratio: kappa = alpha * gamma."""
        assert inputs.column is not None
        return ((0, -inputs.column),), ()

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha, beta and gamma: 0 where only active parameters count, 1 where all count alike."""
        values = super().natural(theta, inputs)
        values["gamma"] = values.pop("kappa") / values["alpha"]
        return values


class JointExperts(LogLinear):
    """The ratio changes amplitudes and exponents of both terms."""

    name = "joint"
    formula = "L = E + A*r^delta/N^(alpha - gamma*ln r) + B*r^omega/D^(beta - zeta*ln r), r = T/N"
    source = "Ludziejewski et al. 2025, arXiv:2502.05172, with the ratio of total to active parameters for the experts"

    def __init__(self) -> None:
        super().__init__(tilts=("delta", "gamma", "omega", "zeta"))

    def tilted(self, inputs: Inputs) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
        """ln r, and its products with ln N and ln D."""
        ratio = inputs.column
        assert ratio is not None
        return ((0, ratio), (1, ratio * inputs.n)), ((2, ratio), (3, ratio * inputs.d))

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """delta and omega at one parameter and one token, as A and B are."""
        values = super().natural(theta, inputs)
        values["delta"] = values["delta"] - values["gamma"] * inputs.centre_n
        values["omega"] = values["omega"] - values["zeta"] * inputs.centre_d
        return values


class TotalParameters(EffectiveExperts):
    """All parameters count alike: gamma is one."""

    name = "total-parameters"
    formula = "L = E + A/T^alpha + B/D^beta, T total parameters"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, eq. 2"

    def __init__(self) -> None:
        LogLinear.__init__(self)

    def tilted(self, inputs: Inputs) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
        """None of its own: the ratio joins the size."""
        return (), ()

    def terms(self, theta: FloatArray, inputs: Inputs) -> list[Term]:
        """Those of the one law at the total number of parameters."""
        return super().terms(theta, _at_total(inputs))

    def linearise(self, shape: FloatArray, inputs: Inputs, log_loss: FloatArray) -> Linearised:
        """As the one law at the total number of parameters."""
        return super().linearise(shape, _at_total(inputs), log_loss)

    def natural(self, theta: FloatArray, inputs: Inputs) -> dict[str, FloatArray]:
        """E, A, B, alpha, beta."""
        return LogLinear.natural(self, theta, inputs)


def _at_total(inputs: Inputs) -> Inputs:
    assert inputs.column is not None
    return Inputs(inputs.n + inputs.column, inputs.d, inputs.centre_n, inputs.centre_d)
