"""Models of transformers by name: what is planned of them, and what is refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from flopsfit_ds.base.errors import FlopsfitError
from flopsfit_ds.cli.main import run as command_line
from flopsfit_ds.model.architecture import HfShape
from flopsfit_ds.model.published import PUBLISHED
from flopsfit_ds.spec import HfModel
from flopsfit_ds.study.families.hf_growth import Growth
from flopsfit_ds.study.steps import build_plan
from flopsfit_ds.train.model.hf import build_from_config
from flopsfit_ds.train.model.language import build_language_model
from helpers.study.hf_models import TOYS, config_of, toy_plan, toy_spec
from helpers.sweeps import MACHINE, spec_of, with_values, write_bytes_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("hf")
    write_bytes_corpus(base / "corpus.txt")
    return base


@pytest.mark.parametrize("name", TOYS)
def test_parameters_and_flops_are_those_of_the_built_model(name, folder):
    toy, planned = TOYS[name], toy_plan(name, folder).runs[0]
    config = config_of(planned)
    assert planned.num_params_active == pytest.approx(toy.num_params, rel=0.5)
    built = build_language_model(planned.model, False)
    assert sum(parameter.numel() for parameter in built.parameters()) == planned.num_params_total
    assert planned.num_params_active == planned.num_params_total - toy.idle(config)
    assert planned.flops == pytest.approx(3 * toy.forward(config) * planned.num_tokens, rel=0.01)
    assert planned.flops_source == "counted"


def test_the_second_plan_counts_nothing_and_other_precision_counts_anew(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    values = toy_spec("llama")
    said: list[str] = []

    def planned(precision="fp32"):
        said.clear()
        spec = spec_of(with_values(values, training__precision=precision))
        return build_plan(spec, spec_folder=folder, machine=MACHINE, tell=said.append).runs

    first = planned()
    assert said
    assert all(line.startswith("counting operations and memory without weights, llama of ") for line in said)
    assert planned() == first
    assert not said
    planned("bf16")
    assert said
    for kept in tmp_path.rglob("*.json"):
        kept.write_text('{"num_params": "many"}')
    assert planned() == first
    assert said, "what is torn is counted again"


def test_sizes_keep_the_ratios_of_where_they_start(folder):
    """Depth, heads, groups and inner width of Llama 2, at every size within the granularity of each."""
    design = {"method": "points", "points": [{"num_params": size, "num_tokens": 1e4} for size in (1e5, 1e6, 1e7)]}
    values = with_values(toy_spec("llama"), design=design, model__width_per_layer=None, model__fields={})
    start = LlamaConfig()
    plan = build_plan(spec_of(values), spec_folder=folder, machine=MACHINE)
    for run, aimed in zip(plan.runs, (1e5, 1e6, 1e7), strict=True):
        config = config_of(run)
        assert run.num_params_total == pytest.approx(aimed, rel=0.25)
        assert config["hidden_size"] == 8 * config["num_attention_heads"] == 8 * config["num_key_value_heads"]
        inner = config["hidden_size"] * start.intermediate_size / start.hidden_size
        assert config["intermediate_size"] == pytest.approx(inner, abs=4)
        assert 0.5 < 128 * config["num_hidden_layers"] / config["hidden_size"] < 2.1


def test_a_configuration_in_a_file_is_the_same_model(folder):
    """Names of older configurations are read, ids that no sequence holds are left out, stale fields are told of."""
    run = toy_plan("llama", folder).runs[0]
    file = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": 32000,
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "rope_theta": 10000.0, "pad_token_id": 31999, "ep_size": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(file))
    model = {key: value for key, value in toy_spec("llama")["model"].items() if key != "architecture"}
    values = with_values(toy_spec("llama"), model=model | {"config": "config.json"})
    plan = build_plan(spec_of(values), spec_folder=folder, machine=MACHINE)
    assert isinstance(run.model, HfShape)
    assert isinstance(plan.runs[0].model, HfShape)
    assert plan.runs[0].model.config_hash == run.model.config_hash
    assert plan.runs[0].num_params_total == run.num_params_total
    assert any("no ep_size" in warning for warning in plan.warnings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_at_its_own_width_is_itself(name):
    """All parameters of the published weights; the sizes between grow by these same ratios."""
    published = PUBLISHED[name]
    growth = Growth(HfModel(family="hf", like=name), Path())
    width, depth = growth.start.get("hidden_size"), growth.start.get("num_hidden_layers")
    assert width % growth.step == 0
    assert growth.aimed_depth(width) == depth
    config = growth.check(growth.fields(width, depth), name)
    with torch.device("meta"):
        built = build_from_config(config)
    assert sum(parameter.numel() for parameter in built.parameters()) == published.num_params
    assert growth.start.warnings == ()


def test_a_run_is_known_by_its_whole_configuration(folder):
    once, again = toy_plan("llama", folder), toy_plan("llama", folder)
    assert [run.run_id for run in once.runs] == [run.run_id for run in again.runs]
    fields = {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    values = with_values(toy_spec("llama"), model__fields=fields)
    other = build_plan(spec_of(values), spec_folder=folder, machine=MACHINE)
    assert other.runs[0].num_params_total == once.runs[0].num_params_total
    assert other.runs[0].run_id != once.runs[0].run_id


REFUSED = [
    ({"architecture": "lama"}, r"model.architecture: 'lama' is no causal language model .*did you mean llama"),
    ({"fields": {"num_kv_heads": 2}}, r"fields.num_kv_heads: .*llama has no such field .*num_key_value_heads"),
    ({"fields": {"vocab_size": 300}}, r"fields.vocab_size: write model.vocab_size"),
    ({"grow": {"num_experts": {"ratio": 1}}}, r"grow.num_experts: .*has no such field"),
    ({"fields": {"hidden_act": 3}}, r"transformers refuses .*hidden_act"),
    ({"fields": {"num_key_value_heads": 3}, "size_multiple_of": 32}, r"heads .* cannot share 3 .*multiple of 24"),
    ({"fields": {"hidden_size": 64}}, r"hidden_size is the size parameter"),
    ({"config": "no.json"}, r"architecture and config; give one"),
    ({"architecture": None, "config": "no.json"}, r"no.json: cannot be read"),
    ({"architecture": None, "like": "qwen3-0.7b"}, r"'qwen3-0.7b' \(did you mean qwen3-0.6b"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said[:30] for _, said in REFUSED])
def test_what_no_model_can_be_made_of_is_refused_in_one_line(changes, said, folder):
    model = {**toy_spec("llama")["model"], **changes}
    values = with_values(toy_spec("llama"), model={key: each for key, each in model.items() if each is not None})
    with pytest.raises(FlopsfitError, match=said) as caught:
        build_plan(spec_of(values), spec_folder=folder, machine=MACHINE)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"w{number}": number for number in range(300)}, "w0")).save(str(folder / "large.json"))
    with pytest.raises(FlopsfitError, match="256"):
        toy_plan("llama", folder, data__tokenizer="large.json")


def test_the_memory_of_a_published_model_or_a_file_at_its_own_size(folder, capsys):
    (folder / "one.json").write_text(json.dumps({"model_type": "llama", **PUBLISHED["smollm2-135m"].fields}))
    flags = ["--seq", "64", "--gpus", "8", "--quick", "--json"]
    points = []
    for source in (["--like", "smollm2-135m"], ["--hf-config", str(folder / "one.json")]):
        assert command_line(["estimate-memory", *source, *flags]) == 0
        points += json.loads(capsys.readouterr().out)["points"]
    assert points[0]["num_params"] == points[1]["num_params"] == PUBLISHED["smollm2-135m"].num_params
    assert points[0]["chosen"]["peak_allocated_bytes"] > 2 * PUBLISHED["smollm2-135m"].num_params
    assert points[0]["strategies"] == points[1]["strategies"]
    assert command_line(["estimate-memory", "--like", "smollm2-135m", "--layers", "3"]) == 2
    assert "a shape is said in one way" in capsys.readouterr().err
