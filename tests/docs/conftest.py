"""Settings for the tests of documents and examples, whose code runs in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flopsfit_ds.fit.laws.registry import LAWS


@pytest.fixture(autouse=True)
def own_laws_stay_here() -> Iterator[None]:
    """What an example adds to the forms of law is no concern of other tests in this process."""
    before = dict(LAWS)
    yield
    LAWS.clear()
    LAWS.update(before)
