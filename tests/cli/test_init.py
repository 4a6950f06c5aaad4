"""`init` writes a spec that can be planned, from flags alone, from questions and from a Hugging Face config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.cli.planning import init
from flopsfit_ds.spec import load_spec
from helpers.cli_in_process import invoke

CONFIG = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}


def test_flags_alone_give_a_spec_that_is_planned_at_once(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    code, said = invoke(
        "init", "-o", path, "--yes", "--device", "cpu", "--gpus", 2, "--target", "1e13", "--name", "mine"
    )
    assert code == 0, said
    spec = load_spec(path)
    assert (spec.name, spec.fit.target_compute, spec.hardware.gpus_per_node) == ("mine", 1e13, 2)
    assert (
        spec.training.learning_rate
        == load_spec(Path(__file__).parents[2] / "ds_configs/quickstart.yaml").training.learning_rate
    )
    assert "total 4.8" in said
    assert f"flopsfit-ds sweep {path}" in said
    assert "beyond that it is a guess" not in said, "no rule is taken a thousand times below its range"
    before = path.read_text()
    code, said = invoke("init", "-o", path, "--yes")
    assert code == 2
    assert "exists already" in said
    assert path.read_text() == before


def test_a_config_of_hugging_face_gives_the_shape_and_the_price_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "b.yaml"
    flags = ("--from-hf", tmp_path, "--data", "train.bin", "--device", "H100-SXM", "--price", 2.5, "--target", "1e22")
    code, said = invoke("init", "-o", path, "--yes", *flags)
    assert code == 0, said
    assert "give data.num_tokens" in said, "the file is not there yet"
    model = load_spec(path).model.model_dump()
    assert (model["vocab_size"], model["head_dim"], model["query_heads_per_kv_head"]) == (151936, 128, 2)
    assert model["tied_embeddings"] is True
    assert model["mlp_ratio"] == 3
    path.write_text(path.read_text().replace("# num_tokens: 10B", "num_tokens: 100B"))
    code, said = invoke("plan", path)
    assert code == 0, said
    assert "at 2.5 an hour" in said


def test_what_no_flag_says_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str] = {}

    def answer(question: str, default: str) -> str:
        asked[question.split()[0]] = default
        return "3e13" if question.startswith("FLOPs") else default

    monkeypatch.setattr(init.typer, "prompt", answer)
    monkeypatch.setattr(init.sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    code, said = invoke("init", "-o", tmp_path / "spec.yaml", "--device", "cpu")
    assert code == 0, said
    assert load_spec(tmp_path / "spec.yaml").fit.target_compute == 3e13
    assert set(asked) == {"The", "FLOPs"}, "the device was given"


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({**CONFIG, "num_hidden_layers": 0})])
def test_a_config_of_no_decoder_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SpecError, match="no config of a decoder"):
        init.shape_of_config(tmp_path)
