"""muP of a class that declares its groups: its activations hold still, and what it declares wrongly is named."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from torch import nn

from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.cli.main import run as cli
from flopsfit_ds.model.architecture import MupScales
from flopsfit_ds.plan.recipe import recipe as recipes
from flopsfit_ds.study.families.of_class import ClassFamily, spec_class_family
from flopsfit_ds.study.steps import build_plan
from flopsfit_ds.train.model.language import build_language_model
from flopsfit_ds.train.model.mup import ScaledClass
from flopsfit_ds.train.optimizers.build import build_optimizer
from helpers.class_models import Declared
from helpers.sweeps import MICRO, spec_of, with_values, write_bytes_corpus

CLASS = {
    "family": "class",
    "class_path": "helpers.class_models:Declared",
    "size_parameter": "width",
    "size_multiple_of": 8,
    "arguments": {"layers": 2},
    "context_length": 16,
}
RULED = with_values(
    MICRO, model=CLASS, training__mup={"base_width": 32, "base_depth": None}, training__learning_rates=[4e-3]
)


def named(class_name: str, **more):
    return with_values(RULED, model=CLASS | {"class_path": f"helpers.class_models:{class_name}"}, **more)


def family_of(values) -> ClassFamily:
    spec = spec_of(values)
    return spec_class_family(spec.model, spec.training)


def test_what_is_declared_gets_its_rate_decay_and_epsilon_and_its_weights_are_scaled():
    shape = family_of(RULED).shape_at(128, 1)
    recipe = recipes.make_recipe(spec_of(RULED).training, 4e-3, recipes.RulePoint(1, 1, 1, 1, 1), 9, None, shape.mup)
    torch.manual_seed(0)
    scaled = build_language_model(shape, False)
    built = build_optimizer(scaled, recipe)
    of_name = {id(parameter): group for group in built.param_groups for parameter in group["params"]}
    seen = {name: of_name[id(parameter)] for name, parameter in scaled.named_parameters()}
    hidden, table, head, bias = (
        seen[name] for name in ("layers.0.weight", "embedding.weight", "head.weight", "layers.0.bias")
    )
    assert (hidden["lr"], hidden["weight_decay"]) == (pytest.approx(1e-3), pytest.approx(0.4))
    assert (table["lr"], head["lr"], bias["lr"]) == (4e-3, 4e-3, 4e-3)
    assert (table["weight_decay"], bias["weight_decay"]) == (0.1, 0.0)
    assert head["eps"] == pytest.approx(1e-8 / 4)
    torch.manual_seed(0)
    plain = Declared(128, 2)
    assert torch.allclose(scaled.head.weight, 2 * plain.head.weight), "drawn by the root of its inputs, four times them"
    assert torch.equal(scaled.layers[0].weight, plain.layers[0].weight)
    hidden = torch.randn(3, 128)
    assert torch.allclose(scaled.head(hidden), plain.head(hidden) / 2, atol=1e-6)


class DrawnAlike(nn.Module):
    """GPT-2's way, and a head that is the table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(8, width), nn.Linear(width, width), nn.Linear(width, 8)
        self.head.weight = self.table.weight
        self.mup_groups = {
            "width": width,
            "initial_std": "constant",
            "input": ["table.weight", "*.bias"],
            "hidden": ["hidden.weight"],
            "output": ["head.weight"],
            "depth": 1,
            "branches": ["hidden"],
        }

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        table = self.table(tokens)
        return self.head(table + self.hidden(table))


def test_a_class_that_draws_all_widths_alike_is_scaled_at_its_hidden_matrices_and_a_tied_table_is_kept():
    models = []
    for build in (DrawnAlike, ScaledClass(DrawnAlike, MupScales(4.0, 2.0, branches=("hidden",)))):
        torch.manual_seed(0)
        models.append(build(width=16))
    plain, scaled = models
    assert torch.allclose(scaled.hidden.weight, plain.hidden.weight / 2)
    assert torch.equal(scaled.head.weight, plain.head.weight)
    scaled.hidden.load_state_dict(plain.hidden.state_dict())
    x = torch.randn(3, 16)
    assert torch.allclose(scaled.hidden(x), plain.hidden(x) / 2)
    assert torch.allclose(scaled.head(x) - scaled.head.bias, (plain.head(x) - plain.head.bias) / 4, atol=1e-6)


def test_a_class_of_the_bases_width_is_what_it_is_without():
    torch.manual_seed(0)
    scaled = build_language_model(family_of(RULED).shape_at(32, 1), False)
    torch.manual_seed(0)
    batch = torch.arange(16)[None]
    assert torch.equal(scaled(batch), Declared(32, 2)(batch))


def test_the_check_holds_still_with_the_declaration_and_not_without_the_rule(tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(RULED))
    asked = ["check-mup", str(path), "--allow-import", "helpers", "--widths", "32,64,128", "--seeds", "1"]
    assert cli(asked) == 0
    said = capsys.readouterr().out
    (flat,), (grown,) = (
        [float(line.split()[-1]) for line in said.splitlines() if line.split()[:2] == [way, "logits"]]
        for way in ("with", "without")
    )
    assert abs(flat) < 0.3 < 0.6 < grown


@pytest.mark.parametrize(
    ("class_name", "said"),
    [
        ("Bigram", "Bigram has no attribute mup_groups; .*a property of the module"),
        ("DeclaredInPart", "the parameter layers.0.bias in none of input, hidden, output"),
        ("DeclaredTwice", "the parameter layers.0.bias in two, input and hidden"),
        ("DeclaredWrongly", "embedding.weight in hidden, of which two sides grow with width; it is .256, "),
    ],
)
def test_a_class_that_declares_nothing_or_wrongly_is_refused_at_planning(tmp_path, class_name, said):
    write_bytes_corpus(tmp_path / "corpus.txt")
    with pytest.raises(FlopsfitError, match=said) as refused:
        build_plan(spec_of(named(class_name)), spec_folder=tmp_path, allow_import=["helpers"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": "wide"}, "'width'. is 'wide'; write a whole number"),
        ({"initial_std": 0.02}, "'initial_std'. is 0.02; write 'fan_in'"),
        ({"hidden": "hidden.weight"}, "'hidden'. is 'hidden.weight'; write a list"),
        ({"outputs": []}, "has a key 'outputs'; its keys are width"),
        ({"branches": []}, "has one of depth and branches"),
    ],
)
def test_a_declaration_of_another_form_is_refused(change, said):
    class Another(DrawnAlike):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.mup_groups = self.mup_groups | change

    with pytest.raises(FlopsfitError, match=said):
        ScaledClass(Another, MupScales(2.0))(width=8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__mup": {"base_width": 32}}, "has no depth and branches .*base_width: 32, base_depth: null"),
        ({"training__mup": {"base_width": 32, "base_depth": None, "base_head_dim": 8}}, "base_head_dim beside"),
        (
            {"training__optimizer": {"name": "adamw", "groups": {"head": {"parameters": ["head.*"]}}}},
            "groups.head.parameters beside training.mup",
        ),
    ],
)
def test_what_contradicts_a_declaration_is_refused(tmp_path, changes, said):
    write_bytes_corpus(tmp_path / "corpus.txt")
    with pytest.raises(FlopsfitError, match=said):
        build_plan(spec_of(named("Declared", **changes)), spec_folder=tmp_path, allow_import=["helpers"])


def test_a_plan_gives_each_size_its_rate_and_reads_back(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    points = [{"num_params": size, "num_tokens": 12800} for size in (9e3, 2e4)]
    sized = with_values(RULED, design={"method": "points", "points": points})
    runs = build_plan(spec_of(sized), spec_folder=tmp_path, allow_import=["helpers"]).runs
    widths = [dict(run.model.arguments)["width"] for run in runs]
    assert len(set(widths)) > 1
    for run, width in zip(runs, widths, strict=True):
        factor = run.recipe.optimizer.group("matrices").learning_rate_factor
        assert math.isclose(factor, 32 / width)
        assert run.from_json_dict(run.to_json_dict()) == run
