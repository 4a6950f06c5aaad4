"""Code that a spec names is imported only where the user allowed it."""

from __future__ import annotations

import copy
import functools
import importlib
import linecache
import sys

import pytest
import torch
from torch import nn

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.base.usercode import check_allowed, import_class, source_hash
from flopsfit_ds.study.steps import build_plan
from helpers.sweeps import MICRO, spec_of, with_values

MODULE = """
import collections
from pathlib import Path
from torch import nn
from torch.nn import Linear
Path(__file__).with_name("imported").touch()
number = 3
OrderedDict = collections.OrderedDict
class NoModel:
    def __init__(self, width): Path(__file__).with_name("called").touch()
def function(width): Path(__file__).with_name("called").touch()
class Model(nn.Module):
    def __init__(self, width): ...
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A package `mine_pkg` with a module that leaves a mark when it is imported."""
    (tmp_path / "mine_pkg").mkdir()
    (tmp_path / "mine_pkg" / "__init__.py").write_text("")
    (tmp_path / "mine_pkg" / "models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file changed within a second would be taken for the same
    yield tmp_path / "mine_pkg"
    for name in [name for name in sys.modules if name.startswith("mine_pkg")]:
        del sys.modules[name]


def test_a_spec_does_not_import_a_class_that_was_not_allowed(module, corpus_folder):
    model = {"family": "class", "class_path": "mine_pkg.models:Model", "size_parameter": "width"}
    spec = spec_of(with_values(MICRO, model=model))
    for allowed in ((), ("other",), ("mine",), ("mine_pkg.model",)):
        with pytest.raises(SpecError, match="--allow-import mine_pkg"):
            build_plan(spec, spec_folder=corpus_folder, allow_import=allowed)
    assert not (module / "imported").exists()


@pytest.mark.parametrize("allowed", ["mine_pkg", "mine_pkg.models"])
def test_a_package_that_was_allowed_holds_for_its_modules(module, allowed):
    check_allowed("mine_pkg.models:Model", [allowed])
    assert import_class("mine_pkg.models:Model").__name__ == "Model"
    assert (module / "imported").exists()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("mine_pkg.nothing:Model", "No module named .*is its folder on PYTHONPATH"),
        ("mine_pkg.models:Nothing", "mine_pkg.models has no Nothing"),
        ("mine_pkg.models:number", "is not a class"),
        ("mine_pkg.models:function", "is not a class"),
        ("mine_pkg.models:NoModel", "is no torch.nn.Module"),
        ("mine_pkg.models:Linear", r"is defined in torch\.nn\.modules\.linear, not in mine_pkg"),
        ("mine_pkg.models:OrderedDict", "is defined in collections, not in mine_pkg"),
        ("mine_pkg.models:nn", "is not a class"),
    ],
)
def test_what_is_no_model_of_the_package_is_a_clear_error_and_is_not_called(module, path, said):
    with pytest.raises(SpecError, match=said):
        import_class(path, ["mine_pkg"])
    assert not (module / "called").exists()


def test_a_class_of_a_part_that_was_not_allowed_is_refused(module):
    (module / "more.py").write_text("from mine_pkg.models import Model\n")
    assert import_class("mine_pkg.more:Model", ["mine_pkg"]).__name__ == "Model"
    with pytest.raises(SpecError, match=r"defined in mine_pkg\.models, not in mine_pkg\.more; name it where"):
        import_class("mine_pkg.more:Model", ["mine_pkg.more"])


def test_a_module_that_fails_while_it_is_imported_is_a_clear_error(module):
    (module / "broken.py").write_text("class Model: ...\n1 / 0\n")
    with pytest.raises(SpecError, match="ZeroDivisionError"):
        import_class("mine_pkg.broken:Model")


def test_a_changed_class_has_another_hash(module):
    before = source_hash(import_class("mine_pkg.models:Model"))
    assert before == source_hash(import_class("mine_pkg.models:Model"))
    (module / "others.py").write_text(MODULE.replace("width): ...", "width): pass"))
    assert source_hash(import_class("mine_pkg.others:Model")) != before


def test_code_without_source_is_known_by_its_name():
    assert source_hash(dict) != source_hash(list)


PROJECT = """
import functools
import torch
from torch import nn
from mine_pkg import parts
from mine_pkg.parts import Block
SCALE = 2
class Base(nn.Module):
    def block(self, width): return Block(width)
class Net(Base):
    def __init__(self, width):
        super().__init__()
        self.inner = self.block(width)
    def forward(self, x): return parts.activate(self.inner(x))
def helper(outputs, targets): return SCALE * (outputs - targets) ** 2
def loss(outputs, targets): return helper(outputs, targets).mean()
def unrelated(): return 1
"""
PARTS = """
from torch import nn
class Block(nn.Linear):
    def __init__(self, width): super().__init__(width, width)
def activate(x): return x.tanh()
def unrelated(): return 1
"""


def hashes(module, name: str, project: str = PROJECT, parts: str = PARTS) -> list[str]:
    """Hashes of class and loss of a project, written and imported afresh."""
    for name_before in [name_before for name_before in sys.modules if name_before.startswith("mine_pkg.")]:
        del sys.modules[name_before]
    (module / "parts.py").write_text(parts)
    (module / f"{name}.py").write_text(project)
    importlib.invalidate_caches()
    linecache.clearcache()
    found = importlib.import_module(f"mine_pkg.{name}")
    return [source_hash(found.Net), source_hash(found.loss)]


@pytest.mark.parametrize(
    ("where", "before", "after", "changed"),
    [
        ("parts", "x.tanh()", "x.relu()", [True, False]),
        ("parts", "(width, width)", "(width, width, bias=False)", [True, False]),
        ("project", "return Block(width)", "return Block(width + 1)", [True, False]),
        ("project", "SCALE = 2", "SCALE = 3", [False, True]),
        ("project", "- targets) ** 2", "- targets) ** 4", [False, True]),
        ("project", "return 1", "return 2", [False, False]),
        ("parts", "return 1", "return 2", [False, False]),
    ],
)
def test_a_change_in_whatever_a_class_or_loss_refers_to_is_seen(module, where, before, after, changed):
    texts = {"project": PROJECT, "parts": PARTS}
    first = hashes(module, "project", **texts)
    assert first == hashes(module, "project", **texts)
    texts[where] = texts[where].replace(before, after)
    assert [old != new for old, new in zip(first, hashes(module, "project", **texts), strict=True)] == changed


def test_arguments_of_objects_and_partial_functions_are_seen():
    losses = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
        functools.partial(nn.functional.cross_entropy, label_smoothing=0.1),
        functools.partial(nn.functional.cross_entropy, label_smoothing=0.2),
    ]
    found = [source_hash(loss) for loss in losses]
    assert len(set(found)) == len(losses)
    assert found == [source_hash(copy.deepcopy(loss)) for loss in losses]
