"""Bad input of a spec: each kind gives one readable error that says where, what was found, and what is allowed."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.spec import load_spec, parse_spec

GOOD = "name: a\ndesign:\n  compute_budgets: [1e12]\n"


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, overrides, name="s.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("extra", "line", "said"),
    [
        (
            "training:\n  lerning_rates: [1e-3]\n",
            5,
            ["training.lerning_rates", "did you mean learning_rates?", "beta1"],
        ),
        ("trainig:\n  seeds: [1]\n", 4, ["trainig: unknown key", "did you mean training?", "placement"]),
        ("training:\n  precision: bf61\n", 5, ["training.precision", "'bf61'", "did you mean bf16?", "fp32, bf16"]),
        ("data:\n  source: tokns\n", 5, ["data.source", "'tokns'", "did you mean tokens?", "python-stdlib"]),
        ("data:\n  paths: [x]\n", 5, ["data.paths: unknown key", "heldout_tokens"]),
        (
            "data:\n  source: mixture\n  sources: {a: {source: python-stdlib}, b: {source: python-stdlib}}\n"
            "  weights: {a: 0.5, b: 0.5}\n  heldout_tokens: 4096\n",
            8,
            ["data.heldout_tokens: unknown key", "each source of a mixture", "write data.sources.NAME.heldout_tokens"],
        ),
        (
            "heldout:\n  a: {source: python-stdlib, hold: 1}\n",
            5,
            ["heldout.a.hold: unknown key", "heldout_tokens, source"],
        ),
        ("heldout:\n  a: {source: txt}\n", 5, ["heldout.a.source", "'txt'", "did you mean text?"]),
        ("heldout:\n  a: {paths: [x]}\n", 5, ["heldout.a: this section needs the key source"]),
        ("training:\n  beta1: hello\n", 5, ["training.beta1", "'hello'", "1e18"]),
        ("training:\n  beta1: 1\n", 5, ["training.beta1", "1 must be 0 or more and less than 1"]),
        ("training:\n  learning_rates: 3e-4\n", 5, ["training.learning_rates", "list", "[3e-4]"]),
        ("training:\n  learning_rates: [1e-3, -1]\n", 5, ["training.learning_rates.1", "greater than 0"]),
        ("training:\n  learning_rates: []\n", 5, ["training.learning_rates", "at least one"]),
        (
            "training:\n  learning_rate:\n    rule: steplaw\n    tune: {num_params: [30k], tokens_per_parameter: 20}\n",
            7,
            ["training.learning_rate.tune.num_params", "'30k'", "give at least 2"],
        ),
        ("training:\n  weight_decay: .nan\n", 5, ["training.weight_decay", "not finite"]),
        ("training:\n  warmup_fraction: 1.5\n", 5, ["training.warmup_fraction", "between 0 and 1"]),
        ("training:\n  seeds: [1e12]\n", 5, ["training.seeds.0", "less than 2^32"]),
        ("training: 5\n", 4, ["training", "found 5", "section"]),
        ("training:\n", 4, ["training", "found nothing", "section"]),
        ("fit:\n  level: 0\n", 5, ["fit.level", "greater than 0 and less than 1"]),
        ("fit:\n  bootstrap_samples: 5\n", 5, ["fit.bootstrap_samples", "5 must be 0 for none, or 20 or more"]),
        ("model:\n  context_length: 10.5\n", 5, ["model.context_length", "10.5 is not a whole number"]),
        ("model:\n  context_length: true\n", 5, ["model.context_length", "True"]),
        ("model:\n  context_length: 0\n", 5, ["model.context_length", "greater than 0"]),
        ("model:\n  head_dim: 7\n", 4, ["model", "head_dim 7 is odd", "even"]),
        ("model:\n  tied_embeddings: maybe\n", 5, ["model.tied_embeddings", "'maybe'", "true, false"]),
        ("model:\n  family: class\n", 4, ["model.class_path: this key is required"]),
        (
            "model:\n  family: class\n  class_path: a.B\n  size_parameter: w\n",
            6,
            ["model.class_path", "'a.B'", "must match"],
        ),
        (
            "model:\n  family: class\n  class_path: a:B\n  size_parameter: w\n  arguments: {x: [1]}\n",
            8,
            ["model.arguments.x", "[1]", "text, a number"],
        ),
        ("placement:\n  zero_stages: [0, 4]\n", 5, ["placement.zero_stages.1", "found 4", "0, 1, 2, 3"]),
        ("hardware:\n  device_memory: 80 gigs\n", 5, ["hardware.device_memory", "'gigs'", "GiB"]),
        ("hardware:\n  device: 100\n", 5, ["hardware.device", "found 100", "text"]),
        ("execution:\n  hang_timeout: 2001-01-01\n", 5, ["execution.hang_timeout", "15m"]),
        ("name: b\n", 4, ["name", "already stands on line 1"]),
    ],
)
def test_one_mistake_gives_one_line_with_place_finding_and_remedy(extra, line, said):
    message = refusal(GOOD + extra)
    first = message.splitlines()[0]
    assert first.startswith(f"s.yaml:{line}: "), message
    for words in said:
        assert words in first
    keys = 2 if "family: class\n" in extra and "class_path" not in extra else 1  # two keys are missing there
    assert len(message.splitlines()) == keys, message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("design:\n  compute_budgets: [1e12]\n", "s.yaml: name: this key is required"),
        ("name: a\n", "s.yaml: design: this key is required"),
        ("name: a\ndesign:\n  sizes_per_budget: 3\n", "s.yaml:2: design.compute_budgets: this key is required"),
        ("name: a\ndesign:\n  method: isofolp\n", "s.yaml:3: design.method: found 'isofolp' (did you mean isoflop?)"),
        ("name: a\ndesign:\n  compute_budgets: 1e12\n", "s.yaml:3: design.compute_budgets: found '1e12'; this takes a"),
        ("name: a\ndesign:\n  compute_budgets: [1e12, 5Q]\n", "s.yaml:3: design.compute_budgets.1: '5Q': unknown unit"),
        ("name: a\ndesign:\n  compute_budgets: [1e12]\n  size_span: 1\n", "size_span 1 must be greater than 1"),
        ("", "found nothing"),
        ("# only a comment\n", "found nothing"),
        ("- a\n", "found list"),
        ("just words\n", "found str"),
        ("name: [a\ndesign: 1\n", "s.yaml:2: this is not YAML"),
        ("name: a\n\tdesign: 1\n", "s.yaml:2: this is not YAML"),
        ("training: *x\n", "s.yaml:1: this is not YAML: found undefined alias 'x'"),
        ("? [a]\n: 1\n", "this is not YAML"),
    ],
)
def test_what_is_missing_or_malformed_is_said(text, said):
    assert said in refusal(text)


@pytest.mark.parametrize("name", ["A", "a b", "a/b", "..", ".", "-a", "a" * 65, "ä", ""])
def test_a_name_that_is_no_safe_folder_is_refused(name):
    message = refusal(f"name: {name!r}\ndesign:\n  compute_budgets: [1e12]\n")
    assert message.startswith("s.yaml:1: name: ")


def test_every_mistake_of_a_file_is_reported_at_once():
    message = refusal(GOOD + "training:\n  beta1: 2\n  lerning: 3\nmodle: {}\n")
    assert [line.split(": ")[0] for line in message.splitlines()] == ["s.yaml:5", "s.yaml:6", "s.yaml:7"]


def test_a_mistake_inside_a_list_of_points_has_its_own_line():
    points = "    - {num_params: 1M, compute: 1e12}\n    - {num_params: 1M, comput: 1e12}\n    - {num_params: 1M}\n"
    message = refusal(f"name: a\ndesign:\n  method: points\n  points:\n{points}")
    assert "s.yaml:6: design.points.1.comput: unknown key (did you mean compute?)" in message
    assert "s.yaml:7: design.points.2: a point takes either num_tokens or compute" in message
    assert "s.yaml:5" not in message


def test_a_nested_duplicate_key_is_refused_where_yaml_would_take_the_last():
    message = refusal("name: a\ndesign:\n  compute_budgets: [1e12]\n  compute_budgets: [1e13]\n")
    assert message == "s.yaml:4: design.compute_budgets: this key already stands on line 3; keep one of the two"


def test_yaml_reads_1e18_as_text_and_the_spec_takes_it_as_a_number():
    spec = parse_spec("name: a\ndesign:\n  compute_budgets: [1e18, 1.0e+18, '1E', 1000000000000000000]\n")
    assert spec.design.compute_budgets == (1e18,) * 4


def test_code_in_yaml_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    message = refusal(f"name: !!python/object/apply:os.system ['touch {marker}']\n")
    assert "this is not YAML" in message
    assert not marker.exists()


def test_an_alias_inside_what_it_names_is_an_error_and_no_endless_walk():
    assert "s.yaml: its aliases" in refusal("name: &x [*x]\ndesign:\n  compute_budgets: [1e12]\n")


def test_what_is_nested_too_deeply_is_refused():
    deep = "[" * 3000 + "]" * 3000
    assert refusal(f"name: {deep}\n") == "s.yaml: line 1: more than 40 levels deep, for a spec"
    assert "more than 40 levels deep" in refusal(GOOD, f"name={deep}")


NINE_TIMES = "".join(f"x{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(10))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NINE_TIMES, "aliases (`*name`) stand for more than 20000 values"),
        ("name: [" + "*a," * 2000 + "]", "more than 1000 aliases"),
        ("name: [" + "1," * 30000 + "]", "more than 20000 keys and values"),
        ("name: " + "A" * 300_000, "300006 characters are too long"),
        ("seed: " + "9" * 5000, "5000 digits"),
        ("name: 0x" + "f" * 100_000, "an integer of about 120412 digits"),
    ],
    ids=["billion", "aliases", "nodes", "length", "digits", "hexadecimal"],
)
def test_a_text_that_means_harm_is_refused_soon_and_in_little_room(text, said):
    text = text if text.startswith("x0") else text.replace("[*a", "[&a 1, *a")
    tracemalloc.start()
    began = time.process_time()
    message = refusal(text)
    seconds, room = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in message
    assert len(message) < 1000
    assert seconds < 15, "a second without the tracing of memory, on an idle core"
    assert room < 100e6


@pytest.mark.parametrize("number", ["1e300", "9" * 400, "1e45000", "-1e300"])
def test_no_number_overflows(number):
    message = refusal(GOOD, f"design.compute_budgets=[{number}]")
    assert "design.compute_budgets.0: found" in message or "compute_budgets.0: " in message
    assert "OverflowError" not in message
    assert len(message) < 300


def test_a_long_value_is_cut_short():
    message = refusal(GOOD, f"training.precision={'x' * 5000}")
    assert "x" * 50 in message
    assert len(message) < 400


def test_an_anchor_may_be_used_twice():
    spec = parse_spec("name: a\ndesign:\n  compute_budgets: &b [1e12]\ntraining:\n  learning_rates: *b\n")
    assert spec.training.learning_rates == (1e12,)


class TestOverrides:
    def test_an_override_replaces_what_the_file_says(self):
        spec = parse_spec(GOOD, ["training.precision=fp32", "training.seeds=[1, 2]", "hardware.device_memory=80GiB"])
        assert spec.training.precision == "fp32"
        assert spec.training.seeds == (1, 2)
        assert spec.hardware.device_memory == 80 * 2**30

    def test_an_override_may_name_a_section_that_the_file_does_not_have(self):
        assert parse_spec(GOOD, ["fit.level=0.5"]).fit.level == 0.5

    def test_a_bad_value_is_blamed_on_the_override_not_on_a_line_of_the_file(self):
        message = refusal(GOOD + "training:\n  beta1: 0.9\n", "training.beta1=2")
        assert message.startswith("override 'training.beta1=2': training.beta1: found 2.0")

    @pytest.mark.parametrize("override", ["trainig.seeds=[1]", "training.sedes=[1]"])
    def test_a_misspelt_key_is_blamed_on_the_override(self, override):
        message = refusal(GOOD, override)
        assert message.startswith(f"override {override!r}")
        assert "did you mean" in message

    @pytest.mark.parametrize("override", ["training", "=1", "a..b=1", "training.beta1=["])
    def test_what_is_no_override_is_answered_with_the_form(self, override):
        assert f"override {override!r}" in refusal(GOOD, override)

    def test_a_value_is_no_section(self):
        assert "name is not a section" in refusal(GOOD, "name.x=1")


class TestFiles:
    def test_a_missing_file_is_an_error_that_points_to_the_shipped_specs(self, tmp_path):
        with pytest.raises(SpecError, match=r"nowhere.yaml: no such file.*flopsfit-ds specs"):
            load_spec(tmp_path / "nowhere.yaml")

    def test_a_folder_is_no_spec(self, tmp_path):
        with pytest.raises(SpecError, match="cannot be read"):
            load_spec(tmp_path)

    def test_a_binary_file_is_no_spec(self, tmp_path):
        path = tmp_path / "s.yaml"
        path.write_bytes(b"\xff\xfe\x00name")
        with pytest.raises(SpecError, match="cannot be read"):
            load_spec(path)

    def test_errors_name_the_file_as_it_was_given(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(GOOD + "modle: {}\n")
        with pytest.raises(SpecError, match=f"^{path}:4: modle"):
            load_spec(path)
