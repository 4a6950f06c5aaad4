"""`validate` and `hardware`."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.base.hardware import DEVICES
from flopsfit_ds.cli.main import build_app
from helpers.cli_in_process import invoke
from helpers.sweeps import MICRO, with_values


def test_validate_plans_the_spec_and_writes_nothing(corpus_folder, monkeypatch):
    monkeypatch.chdir(corpus_folder)
    (corpus_folder / "spec.yaml").write_text(yaml.safe_dump(MICRO))
    before = set(corpus_folder.rglob("*"))
    result = CliRunner().invoke(build_app(), ["validate", "spec.yaml"], catch_exceptions=False)
    told = result.output.splitlines()[-1]
    assert told.startswith("spec.yaml: valid: 1 runs, ")
    assert told.endswith("on 2 cpu")
    assert set(corpus_folder.rglob("*")) == before
    (corpus_folder / "spec.yaml").write_text(yaml.safe_dump(with_values(MICRO, training__learning_rates=[-1.0])))
    with pytest.raises(SpecError, match="learning_rates"):
        CliRunner().invoke(build_app(), ["validate", "spec.yaml"], catch_exceptions=False)


def test_hardware_says_what_the_machine_is_and_what_a_spec_can_name(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, Disabled"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    text = CliRunner().invoke(build_app(), ["hardware"], catch_exceptions=False).output
    assert text.startswith("this machine: 1 H100-SXM of 79.1 GiB")
    assert all(device.name in text for device in DEVICES)
    found = json.loads(CliRunner().invoke(build_app(), ["hardware", "--json"], catch_exceptions=False).output)
    assert found["machine"]["device_name"] == "H100-SXM"
    assert len(found["devices"]) == len(DEVICES)


def test_the_command_that_prepares_data_has_what_the_user_typed(corpus_folder, monkeypatch):
    monkeypatch.chdir(corpus_folder)
    (corpus_folder / "my spec.yaml").write_text(yaml.safe_dump(MICRO))
    typed = ["my spec.yaml", "model.attention_across_documents=false", "name=other"]
    code, said = invoke("plan", *typed)
    assert code == 2
    (command,) = re.findall("`flopsfit-ds (.*)`", said)
    assert invoke(*shlex.split(command))[0] == 0
    assert invoke("plan", *typed)[0] == 0
