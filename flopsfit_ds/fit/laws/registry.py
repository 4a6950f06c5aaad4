"""The forms of law by name."""

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.laws.base import Law
from flopsfit_ds.fit.laws.beyond.compute_only import ComputeOnly
from flopsfit_ds.fit.laws.beyond.data_constrained import DataConstrained
from flopsfit_ds.fit.laws.beyond.excess_parameters import ExcessParameters
from flopsfit_ds.fit.laws.surface.chinchilla import Chinchilla
from flopsfit_ds.fit.laws.surface.interaction import Interaction
from flopsfit_ds.fit.laws.surface.kaplan import Kaplan
from flopsfit_ds.fit.laws.surface.overtraining import OverTraining
from flopsfit_ds.fit.laws.surface.tied import Tied

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Chinchilla(),
        Tied(),
        Kaplan(),
        OverTraining(),
        DataConstrained(),
        ExcessParameters(),
        Interaction(),
        ComputeOnly(),
    )
}
OF_REPEATS = (DataConstrained.name, ExcessParameters.name)
"""Forms that say what repeated data is worth."""
COMPUTE_ONLY = ComputeOnly.name
"""The one form without an optimum: fitted where runs lie on one ray, and to the minima of isoFLOP budgets."""
SURFACES = tuple(name for name in LAWS if name != COMPUTE_ONLY)
"""Forms that tell size from data, and so have an optimum."""


def get_law(name: str) -> Law:
    """The law called `name`.

    Raises:
        FitError: No such law.
    """
    if name not in LAWS:
        raise FitError(f"unknown law {name!r}: choose one of {', '.join(LAWS)}")
    return LAWS[name]
