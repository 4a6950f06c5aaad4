"""The JSON Schema that editors use, and specs that do not change once they are read."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pydantic
import pytest
import yaml

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.base.presets import shipped_specs
from flopsfit_ds.spec import SweepSpec, load_spec, parse_spec, spec_json_schema

GOOD = "name: a\ndesign:\n  compute_budgets: [1e12]\n"


def fields_of(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    sections = [("SweepSpec", schema), *schema["$defs"].items()]
    return [(name, key, value) for name, section in sections for key, value in section.get("properties", {}).items()]


def test_every_quantity_of_the_schema_takes_numbers_and_texts_so_that_editors_accept_units():
    schema = spec_json_schema()
    budgets = schema["$defs"]["IsoflopDesign"]["properties"]["compute_budgets"]["items"]
    assert {entry["type"] for entry in budgets["anyOf"]} == {"number", "string"}


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("design", {"compute_budgets": ["-1e18"]}),
        ("design", {"compute_budgets": [-1e18]}),
        ("design", {"compute_budgets": [1e18], "sizes_per_budget": 0}),
        ("training", {"warmup_fraction": 1.5}),
        ("training", {"seeds": [-1]}),
        ("hardware", {"device_memory": "-80GiB"}),
        ("fit", {"level": 0}),
    ],
)
def test_numbers_out_of_bounds_are_refused_by_the_schema_as_by_the_spec(section, values):
    spec = {"name": "a", "design": {"compute_budgets": [1e12]}} | {section: values}
    with pytest.raises(SpecError):
        parse_spec(yaml.safe_dump(spec))
    spec["design"] = {"method": "isoflop", **spec["design"]}  # what names its kind gives an editor one place to look
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(spec_json_schema()).validate(spec)


def test_every_field_of_the_schema_is_described_but_sections_and_their_tags():
    sections = ("model", "data", "design", "training", "hardware", "placement", "fit", "execution")
    tags = ("family", "source", "method")
    bare = [
        f"{name}.{key}"
        for name, key, value in fields_of(spec_json_schema())
        if "description" not in value and key not in (*sections, *tags)
    ]
    assert bare == []


def test_unknown_keys_are_refused_by_the_schema_too():
    schema = spec_json_schema()
    assert schema["additionalProperties"] is False
    loose = [name for name, part in schema["$defs"].items() if part.get("additionalProperties") is not False]
    assert loose == []


@pytest.mark.parametrize("name", sorted(shipped_specs()))
def test_the_schema_accepts_the_shipped_specs(name):
    values = yaml.safe_load(shipped_specs()[name].read_text())
    jsonschema.Draft202012Validator(spec_json_schema()).validate(values)


@pytest.mark.parametrize("name", sorted(shipped_specs()))
def test_the_shipped_specs_carry_the_editors_line_and_say_what_they_are(name):
    path = shipped_specs()[name]
    lines = path.read_text().splitlines()
    schema = path.parent / lines[0].removeprefix("# yaml-language-server: $schema=")
    assert json.loads(schema.read_text()) == spec_json_schema(), f"flopsfit-ds schema > ds_configs/{schema.name}"
    assert any(line.startswith("# ") and "yaml-language-server" not in line for line in lines)


@pytest.mark.parametrize("name", sorted(shipped_specs()))
def test_a_spec_that_is_written_out_is_read_back_the_same(name):
    spec = load_spec(shipped_specs()[name])
    assert parse_spec(yaml.safe_dump(spec.model_dump(mode="json"))) == spec


def test_a_spec_cannot_change_after_it_was_read():
    spec = parse_spec(GOOD)
    with pytest.raises(pydantic.ValidationError):
        spec.training.beta1 = 0.5  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(spec.design.compute_budgets, tuple)
    assert hash(spec.training) == hash(parse_spec(GOOD).training)


def test_what_is_left_out_has_its_default_of_the_default_kind():
    spec = parse_spec("name: a\nmodel:\n  context_length: 32\ndesign:\n  compute_budgets: [1e12]\n")
    assert (spec.model.family, spec.data.source, spec.design.method) == ("decoder", "python-stdlib", "isoflop")
    assert spec == SweepSpec.model_validate(
        {"name": "a", "model": {"context_length": 32}, "design": {"compute_budgets": [1e12]}}
    )
