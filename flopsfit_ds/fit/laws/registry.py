"""The forms of law by name."""

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.laws.base import Law
from flopsfit_ds.fit.laws.chinchilla import Chinchilla
from flopsfit_ds.fit.laws.data_constrained import DataConstrained
from flopsfit_ds.fit.laws.interaction import Interaction
from flopsfit_ds.fit.laws.kaplan import Kaplan
from flopsfit_ds.fit.laws.overtraining import OverTraining
from flopsfit_ds.fit.laws.tied import Tied

LAWS: dict[str, Law] = {
    law.name: law for law in (Chinchilla(), Tied(), Kaplan(), OverTraining(), DataConstrained(), Interaction())
}


def get_law(name: str) -> Law:
    """The law called `name`.

    Raises:
        FitError: No such law.
    """
    if name not in LAWS:
        raise FitError(f"unknown law {name!r}: choose one of {', '.join(LAWS)}")
    return LAWS[name]
