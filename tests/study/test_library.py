"""`find_optimal`: what it refuses before training, what it plans, and a real study, plainly and under a launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from flopsfit_ds.base.errors import DataError, PlanError, SpecError
from flopsfit_ds.engine.fork.server import pickle_task
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.simulate.profile import profile_class
from helpers.study import own_model
from helpers.study.own_model import Convolution, Language, NoisyWaves, Regressor, Waves, study

SCRIPT = Path(own_model.__file__)


class Rotated(Regressor):
    """Turns its hidden values by complex numbers."""

    def __init__(self, width: int, inputs: int = 16) -> None:
        super().__init__(width, inputs)
        self.turns = nn.Parameter(torch.ones(inputs, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x * self.turns).real)


@pytest.fixture(scope="module")
def planned() -> SweepPlan:
    """The study as it stands, without a change."""
    return plan()


def plan(model_class: type[nn.Module] = Regressor, **changes: object) -> SweepPlan:
    result = study(model_class, train=False, **changes)
    assert isinstance(result, SweepPlan)
    return result


def test_the_plan_counts_the_class_exactly_and_meets_the_budgets(planned: SweepPlan) -> None:
    for run in planned.runs:
        module = Regressor(**dict(run.model.arguments))
        assert run.num_params_total == sum(parameter.numel() for parameter in module.parameters())
        linear = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
        first = module.layers[0].weight.numel()  # the input needs no gradient
        assert run.flops == pytest.approx((6 * linear - 2 * first) * run.num_tokens)
        assert run.flops == pytest.approx(run.compute_budget_flops, rel=0.005)


def test_a_class_that_normalises_over_the_batch_has_one_layout_on_one_gpu(planned: SweepPlan) -> None:
    held = plan(Convolution)
    assert {run.placement.strategy.num_gpus for run in held.runs} == {1}
    assert len({run.placement.strategy.micro_batch_size_per_gpu for run in held.runs}) == 1
    assert any("Convolution normalises over the batch (BatchNorm1d)" in warning for warning in held.warnings)
    assert not any("normalises" in warning for warning in planned.warnings)
    smaller = plan(Convolution, placement={"max_micro_batch_size_per_gpu": 32})
    assert {run.run_id for run in held.runs}.isdisjoint(run.run_id for run in smaller.runs)
    with pytest.raises(PlanError, match=r"placement.num_gpus: \[2\] must hold 1, since Convolution normalises"):
        plan(Convolution, placement={"num_gpus": [2]})


def test_flops_of_a_class_that_normalises_over_the_batch_are_counted() -> None:
    for run in plan(model_class=Convolution).runs:
        width = Convolution(**dict(run.model.arguments)).last.in_features
        per_sample = 4 * 3 * width * 16 + 6 * width  # 16 positions, of which none needs a gradient of the input
        assert run.flops == pytest.approx(per_sample * run.num_tokens)


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_output_head_are_no_part_of_the_non_embedding_parameters(tied: bool) -> None:
    measured = profile_class(
        Language, {"width": 64, "tied": tied}, samples=(torch.zeros(2, 8, dtype=torch.int64),) * 2, precision="fp32",
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()),
        tokens_per_sample=8,
    )  # fmt: skip
    assert measured.num_params - measured.num_params_embedding == 64 * 64 + 64  # the layer, as wide as the vocabulary


def test_frozen_parameters_of_a_class_need_no_gradients() -> None:
    for run in plan(training={"frozen_parameters": ["layers.2.*"]}).runs:
        module = Regressor(**dict(run.model.arguments))
        linear = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
        frozen = module.layers[2]
        spared = 2 * (module.layers[0].weight.numel() + frozen.weight.numel())
        assert run.flops == pytest.approx((6 * linear - spared) * run.num_tokens)
        assert run.num_params_trainable == run.num_params_total - sum(p.numel() for p in frozen.parameters())


def test_a_class_whose_flops_cannot_be_counted_is_planned_only_with_consent() -> None:
    changes = {"model_class": Convolution, "model_arguments": {"peek": True}}
    with pytest.raises(PlanError, match=r"cannot be counted without weights.*approximate_flops=True"):
        plan(**changes)
    accepted = plan(**changes, approximate_flops=True)
    assert all(run.flops == 6 * run.num_params_total * run.num_tokens for run in accepted.runs)
    assert {run.flops_source for run in accepted.runs} == {"6nd"}
    assert any("FLOPs are 6 N D" in warning for warning in accepted.warnings)


def test_every_rank_can_take_a_dataset_that_holds_tensors() -> None:
    sent = pickle_task(Waves(8))
    for _rank in range(2):
        received = subprocess.run(
            [sys.executable, "-c", "import pickle, sys; print(float(pickle.load(sys.stdin.buffer).x.sum()))"],
            input=sent, capture_output=True, check=True, cwd=SCRIPT.parents[2],
        )  # fmt: skip
        assert float(received.stdout) == float(Waves(8).x.sum())


def test_planning_builds_weights_of_one_small_model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    built = set()
    original = nn.Linear.reset_parameters

    def note(layer: nn.Linear) -> None:
        if not layer.weight.is_meta and type(layer.weight) is nn.Parameter:
            built.add(layer.weight.shape)
        original(layer)

    monkeypatch.setattr(nn.Linear, "reset_parameters", note)
    runs = plan().runs
    smallest = min(dict(run.model.arguments)["width"] for run in runs)
    assert built
    assert all(shape[0] < smallest for shape in built)


def test_a_change_of_data_or_arguments_is_a_new_run(planned: SweepPlan) -> None:
    before = {run.run_id for run in planned.runs}
    assert before == {run.run_id for run in plan().runs}
    assert before.isdisjoint(run.run_id for run in plan(dataset=Waves(5000)).runs)
    noisy = [[run.run_id for run in plan(dataset=NoisyWaves()).runs] for _again in range(2)]
    assert noisy[0] == noisy[1]
    assert before.isdisjoint(run.run_id for run in plan(model_arguments={"inputs": 16}).runs)
    losses = [nn.MSELoss(), nn.HuberLoss(), nn.HuberLoss(delta=2.0)]
    ids = [run.run_id for loss in losses for run in plan(loss_fn=loss).runs]
    assert len(set(ids)) == len(ids)


def test_a_heldout_share_is_left_out_of_training() -> None:
    own = plan(heldout_fraction=0.25)
    assert own.corpus.training_tokens == 3000
    assert own.corpus.heldout_tokens == 1000
    given = plan(eval_dataset=Waves(500))
    assert (given.corpus.training_tokens, given.corpus.heldout_tokens) == (4000, 500)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"size_parameter": "breadth"}, SpecError, "takes no argument 'breadth'; its constructor takes width, inputs"),
        ({"dataset": torch.zeros(0, 2)}, DataError, "dataset is empty"),
        ({"dataset": iter([])}, DataError, "not map-style"),
        ({"dataset": [1.0, 2.0]}, DataError, "a pair"),
        ({"loss_fn": lambda outputs, targets: (outputs - targets) ** 2}, PlanError, "scalar"),
        ({"loss_fn": lambda outputs, targets: torch.stack([outputs, targets])}, PlanError, "scalar"),
        ({"training": {"precison": "fp32"}}, SpecError, "did you mean precision"),
        (
            {"training": {"frozen_parameters": ["encoder.*"]}},
            PlanError,
            "matches no parameter; there are layers.0.weight",
        ),
        ({"model_arguments": {"inputs": nn.Linear}}, SpecError, "model_arguments: inputs is <class .*Linear"),
        ({"model_arguments": {"inputs": "many"}}, SpecError, "cannot be built"),
        ({"model_class": Rotated}, PlanError, "Rotated: turns holds complex numbers, .* use torch.view_as_complex"),
    ],
)
def test_bad_input_is_refused_before_training(changes: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan(**changes)


@pytest.mark.slow
def test_a_study_in_a_plain_script_trains_every_run_and_writes_its_report(tmp_path: Path) -> None:
    assert len(losses_of("plain", [sys.executable], 1, tmp_path)) == 6


@pytest.mark.slow
@pytest.mark.long
def test_a_study_gives_the_same_losses_on_one_gpu_each_and_under_deepspeed_on_two(tmp_path: Path) -> None:
    alone = losses_of("plain", [sys.executable], 1, tmp_path)
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2"]
    assert losses_of("launched", deepspeed, 2, tmp_path) == pytest.approx(alone, abs=1e-5)


def losses_of(name: str, launcher: list[str], num_gpus: int, tmp_path: Path) -> dict[str, float | None]:
    """Of the runs of the user's own script, with so many GPUs a run."""
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*launcher, str(SCRIPT), name, str(num_gpus)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    records = {record.run_id: record for record in SweepFolder(tmp_path / name / "find-optimal").records()}
    assert len(records) == 6
    assert all(record.status == "completed" for record in records.values())
    assert all(record.attempts[-1].world_size == num_gpus for record in records.values())
    assert (tmp_path / name / "find-optimal" / "report" / "index.html").exists()
    return {run_id: record.loss for run_id, record in records.items()}
