"""The forms of law by name."""

from flopsfit_ds.base.errors import FitError
from flopsfit_ds.fit.laws.base import Law
from flopsfit_ds.fit.laws.mixed import Interaction, Kaplan
from flopsfit_ds.fit.laws.parametric import Chinchilla, DataConstrained, OverTraining, Tied

LAWS: dict[str, Law] = {
    law.name: law for law in (Chinchilla(), Tied(), Kaplan(), OverTraining(), DataConstrained(), Interaction())
}


def get_law(name: str) -> Law:
    """The law called `name`.

    Raises:
        FitError: no such law.
    """
    if name not in LAWS:
        raise FitError(f"unknown law {name!r}: choose one of {', '.join(LAWS)}")
    return LAWS[name]
