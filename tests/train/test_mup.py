"""muP and CompleteP: the base is as without, activations move as far at every size, and one rate is best for all."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.cli.main import run as cli
from flopsfit_ds.plan.family import DecoderFamily
from flopsfit_ds.plan.recipe import recipe as recipes
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan
from flopsfit_ds.spec import SweepSpec
from flopsfit_ds.study.families.of_hf import HfFamily
from flopsfit_ds.train.model.decoder import Decoder
from flopsfit_ds.train.model.language import build_language_model
from flopsfit_ds.train.optimizers.build import build_optimizer, rate_factors
from flopsfit_ds.train.optimizers.kinds import known_parameters
from helpers.sweeps import MICRO, plan_of, spec_of, with_values, write_bytes_corpus

BASE = {"base_width": 32, "base_depth": 2}
RULED = with_values(MICRO, training__mup=BASE, training__learning_rates=[2e-3], model__tied_embeddings=False)
PLAIN = with_values(RULED, training__mup=None)
SIZES = ("--widths", "32,64,128", "--depths", "2,4,8", "--seeds", "1")


def shape_of(values, width: int, depth: int):
    spec: SweepSpec = spec_of(values)
    return DecoderFamily(spec.model, spec.training).shape_at(width, depth)


def trained(shape, values, batch: torch.Tensor, num_steps: int, rate: float | None = None) -> float:
    """Loss after some steps on one batch, by the recipe of a plan."""
    training = spec_of(values).training
    point = recipes.RulePoint(1.0, 1.0, 1.0, 1e6, 128)
    recipe = recipes.make_recipe(training, rate or training.learning_rates[0], point, 100, None, shape.mup)
    torch.manual_seed(0)
    model = Decoder(shape)
    optimizer = build_optimizer(model, recipe)
    for _ in range(num_steps):
        model(batch[:, :-1], batch[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model(batch[:, :-1], batch[:, 1:]).item()


def batch_of(num_sequences: int) -> torch.Tensor:
    return torch.randint(256, (num_sequences, 17), generator=torch.Generator().manual_seed(1))


def test_a_model_of_the_bases_shape_is_trained_as_without_and_no_other_is():
    for width, depth, same in ((32, 2, True), (64, 2, False), (32, 4, False)):
        losses = [trained(shape_of(values, width, depth), values, batch_of(4), 3) for values in (RULED, PLAIN)]
        assert (losses[0] == losses[1]) is same, (width, depth)


def test_heads_of_the_bases_width_score_as_without_and_wider_ones_by_one_over_their_width():
    wide = with_values(RULED, model__head_dim=16, training__mup=BASE | {"base_head_dim": 4})
    block = Decoder(shape_of(wide, 32, 2)).blocks[0]
    assert block.attention.score_scale == pytest.approx(math.sqrt(4) / 16)
    same = with_values(wide, training__mup=BASE | {"base_head_dim": 16})
    losses = [trained(shape_of(values, 32, 2), values, batch_of(4), 2) for values in (same, wide)]
    assert losses[0] != losses[1]


def test_what_grows_with_width_gets_its_rate_decay_and_epsilon():
    shape = shape_of(RULED, 128, 4)
    recipe = recipes.make_recipe(spec_of(RULED).training, 1e-3, recipes.RulePoint(1, 1, 1, 1, 1), 9, None, shape.mup)
    model = Decoder(shape)
    built = build_optimizer(model, recipe)
    of_name = {id(parameter): group for group in built.param_groups for parameter in group["params"]}
    seen = {name: of_name[id(parameter)] for name, parameter in model.named_parameters()}
    hidden, head, norm = (seen[name] for name in ("blocks.0.mlp.up.weight", "head.weight", "norm.weight"))
    assert hidden["lr"] == pytest.approx(1e-3 / 4)
    assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(1e-3 * 0.1)  # what a step takes is the same
    assert hidden["eps"] == pytest.approx(1e-8 / (4 * 2))
    assert (head["lr"], head["weight_decay"], head["eps"]) == (1e-3, 0.1, pytest.approx(1e-8 / 4))
    assert (norm["lr"], norm["weight_decay"]) == (1e-3, 0.0)
    assert sorted(set(rate_factors(built))) == [0.25, 1.0]
    stds = {name: parameter.std().item() for name, parameter in model.named_parameters()}
    assert stds["blocks.0.mlp.up.weight"] == pytest.approx(0.02 / 2, rel=0.05)
    assert stds["blocks.0.mlp.down.weight"] == pytest.approx(0.02 / 2 / math.sqrt(2 * 2), rel=0.05)
    assert stds["head.weight"] == pytest.approx(0.02, rel=0.05)


def test_a_layer_as_wide_as_the_vocabulary_is_no_head():
    """A model of bytes of width 256 has 256 rows in its projections too; a rate of the head's would be another law."""
    model = Decoder(shape_of(with_values(PLAIN, model__vocab_size=64), 64, 1))
    kinds = {each.name: each.kind for each in known_parameters(model, OptimizerPlan("adamw"))}
    assert [name for name, kind in kinds.items() if kind == "head"] == ["head.weight"]
    assert kinds["blocks.0.attention.query.weight"] == "matrices"


def test_the_check_passes_with_the_rule_and_fails_when_it_is_taken_away(tmp_path, capsys, monkeypatch):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(RULED))
    figure = tmp_path / "check.svg"
    assert cli(["check-mup", str(path), *SIZES, "--figure", str(figure)]) == 0
    said = capsys.readouterr().out
    assert "all hold still" in said
    assert "without  logits" in said
    assert figure.read_text().startswith(("<?xml", "<svg"))
    monkeypatch.setattr(recipes, "scaled_optimizer", lambda optimizer, mup, weight_decay: optimizer)
    assert cli(["check-mup", str(path), *SIZES]) == 1
    assert "sizes drift: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__optimizer": {"name": "muon"}}, "mup beside optimizer muon: .*AdamW alone"),
        (
            {"training__learning_rates": None, "training__learning_rate": {"rule": "steplaw"}},
            "steplaw: both lower",
        ),
        ({"training__learning_rate_reference_params": 1e6}, "mup beside learning_rate_reference_params"),
        ({"model__depth_scaled_init": True}, "mup with base_depth beside model.depth_scaled_init"),
    ],
)
def test_what_contradicts_the_rule_is_refused_at_planning(tmp_path, changes, said):
    write_bytes_corpus(tmp_path / "corpus.txt")
    with pytest.raises(FlopsfitError, match=said):
        plan_of(with_values(RULED, **changes), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("training.mup=false",), "training.mup is off"),
        (("--widths", "64"), "--widths: an exponent takes two sizes"),
        (("--widths", "60,64"), "a width of 60 is no multiple of 8"),
        (("--widths", "a,b"), "--widths: 'a,b' is no list"),
        (("training.mup={base_depth: null}", "--depths", "2,4"), "--depths: training.mup has no base_depth"),
    ],
)
def test_a_check_that_cannot_be_made_says_why_in_a_line(tmp_path, capsys, arguments, said):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(RULED))
    assert cli(["check-mup", str(path), *arguments]) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1


LLAMA = with_values(
    RULED,
    model={"family": "hf", "architecture": "llama", "head_dim": 8, "vocab_size": 256, "context_length": 16},
    training__mup=BASE,
)


def hf_shape(values, width: int, depth: int):
    spec = spec_of(values)
    return HfFamily(spec.model, spec.training, Path()).shape_at(width, depth)


def test_a_llama_of_the_bases_shape_is_as_without_and_others_have_its_scales():
    assert weights_and_logits(LLAMA, 32, 2) == weights_and_logits(without(LLAMA), 32, 2)
    wide, plain = (build_language_model(hf_shape(each, 128, 4), False) for each in (LLAMA, without(LLAMA)))
    stds = [model.model.layers[0].mlp.up_proj.weight.std().item() for model in (wide, plain)]
    assert stds[0] == pytest.approx(stds[1] / 2, rel=0.05)
    wide.load_state_dict(plain.state_dict())
    hidden = torch.randn(1, 3, 128)
    assert torch.allclose(wide.lm_head(hidden), plain.lm_head(hidden) / 4)
    layer, other = wide.model.layers[0], plain.model.layers[0]
    assert torch.allclose(layer.mlp(hidden), other.mlp(hidden) / 2)


def without(values):
    return with_values(values, training__mup=None)


def weights_and_logits(values, width: int, depth: int) -> list[float]:
    torch.manual_seed(0)
    model = build_language_model(hf_shape(values, width, depth), False)
    return [*(p.sum().item() for p in model.parameters()), model(batch_of(2)).logits.sum().item()]


def test_the_check_of_a_llama_passes_with_the_rule_and_fails_when_it_is_taken_away(tmp_path, capsys, monkeypatch):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(LLAMA))
    assert cli(["check-mup", str(path), *SIZES]) == 0
    monkeypatch.setattr(recipes, "scaled_optimizer", lambda optimizer, mup, weight_decay: optimizer)
    assert cli(["check-mup", str(path), *SIZES]) == 1
    assert "sizes drift: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"architecture": "olmo2"}, "training.mup: its multipliers are known for llama, .*found olmo2"),
        ({"architecture": "llama", "fields": {"num_attention_heads": 4}}, "lets heads grow with width"),
    ],
)
def test_a_model_of_transformers_whose_multipliers_are_not_known_is_refused(model, said):
    with pytest.raises(FlopsfitError, match=said):
        hf_shape(with_values(LLAMA, model={"family": "hf", "vocab_size": 256, "context_length": 16} | model), 32, 2)


def test_off_and_not_written_are_one_run_and_on_is_another(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    ids = [plan_of(with_values(PLAIN, **more), tmp_path).runs[0].run_id for more in ({}, {"training__mup": False})]
    assert ids[0] == ids[1]
    on = plan_of(with_values(PLAIN, training__mup=True), tmp_path).runs[0]
    assert on.run_id != ids[0]
    assert on.model.mup is not None
    assert on.from_json_dict(on.to_json_dict()) == on
    assert replace(on.model, mup=None) == plan_of(PLAIN, tmp_path).runs[0].model
