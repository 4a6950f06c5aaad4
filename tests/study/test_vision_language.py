"""What is left to train of a model: `estimate-memory --train`, of images and text, of transformers and the decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flopsfit_ds.cli.main import run

TEXT = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 300,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
CONFIG = {
    "model_type": "llava", "text_config": TEXT, "vision_config": VISION, "vision_feature_select_strategy": "full",
    "vision_feature_layer": -1, "tie_word_embeddings": False,
}  # fmt: skip
PROJECTION = (32 + 1) * 64 + (64 + 1) * 64
LANGUAGE = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64 + 2 * 16) + 64 + 2 * 300 * 64
ONLY_THE_PROJECTION = ("--train", "*multi_modal_projector*")


def tower() -> int:
    """SigLIP's, its head for pooling with it, which is there whether or not it is used."""
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 2 * 32
    patches = 3 * 8 * 8 * 32 + 32 + 16 * 32
    head = 32 + (3 * 32 * 32 + 3 * 32) + (32 * 32 + 32) + 2 * 32 + (32 * 64 + 64) + (64 * 32 + 32)
    return patches + 2 * layer + 2 * 32 + head


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def point_of(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict:
    assert run(["estimate-memory", *map(str, arguments), "--gpus", "8", "--json"]) == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    return point


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert run(["estimate-memory", *map(str, arguments), "--quick"]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_states_are_of_the_projection_and_activations_of_everything(config, capsys):
    point = point_of(capsys, "--hf-config", config, *ONLY_THE_PROJECTION, "--seq", 64, "--quick")
    assert point["num_params_trainable"] == PROJECTION
    assert point["num_params"] == PROJECTION + LANGUAGE + tower()
    whole = point_of(capsys, "--hf-config", config, "--train", "*", "--seq", 64, "--quick")
    assert whole["num_params_trainable"] == whole["num_params"] == point["num_params"]
    rows = {row["zero_stage"]: row for row in point["strategies"] if row["offload"] == "none"}
    assert set(rows) == {0, 1, 2, 3}
    assert 8 * PROJECTION <= rows[0]["components"]["optimizer_states"] < 8 * PROJECTION + 4096
    assert rows[0]["components"]["parameters"] >= 4 * point["num_params"] > 4 * rows[3]["components"]["parameters"]
    longer = point_of(capsys, "--hf-config", config, *ONLY_THE_PROJECTION, "--seq", 128, "--quick")
    saved = [each["chosen"]["components"]["saved_activations"] for each in (point, longer)]
    # of each of the language model's layers at least the outputs of gate, SiLU, up and product, in two bytes or more
    assert saved[1] - saved[0] > 64 * 3 * 4 * 2 * 128


@pytest.mark.slow
def test_the_engine_is_simulated_with_what_is_frozen(config, capsys):
    only = point_of(capsys, "--hf-config", config, *ONLY_THE_PROJECTION, "--seq", 64, "--zero", 0)
    assert only["problem"] is None
    assert only["chosen"]["method"] == "simulation"
    found = only["chosen"]["components"]
    assert 8 * PROJECTION <= found["optimizer_states"] < 8 * PROJECTION + 4096
    whole = point_of(capsys, "--hf-config", config, "--train", "*", "--seq", 64, "--zero", 0)
    assert whole["chosen"]["components"]["optimizer_states"] >= 8 * whole["num_params"]


def test_without_a_pattern_the_language_model_is_looked_at_alone(config, capsys):
    point = point_of(capsys, "--hf-config", config, "--seq", 64, "--quick")
    assert point["num_params"] == point["num_params_trainable"] == LANGUAGE


def test_parts_of_other_models_are_frozen_too(tmp_path, capsys):
    (tmp_path / "text.json").write_text(json.dumps(TEXT))
    text = point_of(capsys, "--hf-config", tmp_path / "text.json", "--train", "lm_head.*", "--seq", 64, "--quick")
    assert text["num_params"] == LANGUAGE
    assert text["num_params_trainable"] == 300 * 64
    shape = ["--layers", 2, "--hidden", 64, "--heads", 4, "--vocab", 300, "--seq", 64, "--quick"]
    decoder = point_of(capsys, *shape, "--train", "head.weight", "--train", "norm.weight")
    assert decoder["num_params_trainable"] == 300 * 64 + 64


def test_what_cannot_be_is_refused_in_one_line(config, capsys):
    told = refused(capsys, "--hf-config", config, "--train", "*adapter*", "--seq", 64)
    assert "--train '*adapter*' matches no parameter; parts of the model are model.vision_tower" in told
    assert "model.multi_modal_projector" in told
    told = refused(capsys, "--hf-config", config, *ONLY_THE_PROJECTION, "--seq", 16)
    assert "an image is 16 tokens; sequences must be longer" in told
    config.write_text(json.dumps(CONFIG | {"model_type": "llavva"}))
    assert "llavva" in refused(capsys, "--hf-config", config, *ONLY_THE_PROJECTION)
    told = refused(capsys, "cpu_zero", "--train", "head.weight")
    assert "--train: only for a shape without a spec" in told
