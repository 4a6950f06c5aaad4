"""Where runs are placed: what a user sees in a plan."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import TypeAdapter

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.base.hardware import Cluster, resolve_cluster
from flopsfit_ds.memory import Strategy, profile_decoder
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.model.flops import training_flops_per_token
from flopsfit_ds.plan.layouts import CLEARLY_FITS, Search
from flopsfit_ds.plan.placement import Placement, place_run
from flopsfit_ds.plan.placing import _place_alike
from flopsfit_ds.plan.step_time import step_seconds
from flopsfit_ds.spec import PlacementRules

H100_NODE = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8)
SMALL = ModelShape(12, 768, 12, 12, 2048, 50304, 1024)
ONE_B = ModelShape(24, 2048, 16, 16, 5504, 32000, 1024)
SEVEN_B = ModelShape(32, 4096, 32, 32, 11008, 32000, 2048)
SEVENTY_B = ModelShape(80, 8192, 64, 8, 28672, 32000, 2048)


def place(shape: ModelShape, cluster: Cluster = H100_NODE, batch: int = 256, **rules: object) -> Placement:
    return place_run(
        profile_decoder(shape, "bf16"),
        training_flops_per_sequence=training_flops_per_token(shape) * shape.context_length,
        num_steps=100,
        global_batch_sequences=batch,
        precision="bf16",
        cluster=cluster,
        rules=PlacementRules.model_validate(rules),
    )


def test_a_small_model_is_not_sharded():
    strategy = place(SMALL).strategy
    assert (strategy.zero_stage, strategy.num_gpus, strategy.offload) == (0, 1, "none")


def test_a_large_model_is_sharded_and_the_reason_carries_the_numbers():
    placement = place(SEVEN_B)
    assert placement.strategy.zero_stage > 0
    assert placement.memory.device_total_bytes <= H100_NODE.device_memory_bytes
    assert "of 79.1 GiB" in placement.reason
    beside = dict(part.split(": ", 1) for part in placement.reason.split("; ")[1].split(", "))
    # the next lower stage and the nearest numbers of GPUs, each with what it lacks or how fast it is
    assert set(beside) == {"ZeRO-2", "4 GPUs"}
    assert all(said.endswith("% of the speed a GPU") for said in beside.values())
    speed = float(beside["ZeRO-2"].partition("%")[0]) / 100
    rivals = [c for c in placement.runners_up if c.strategy.zero_stage == 2 and c.strategy.num_gpus == 8]
    assert speed == pytest.approx(placement.layout.gpu_seconds / min(c.gpu_seconds for c in rivals), abs=0.01)


def test_a_reason_says_what_the_nearest_others_lack():
    cluster = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8, num_nodes=64)
    reason = place(SEVENTY_B, cluster, num_gpus=(64, 128), batch=2048).reason
    assert "ZeRO-2: would need" in reason
    assert "without checkpointing: would need" in reason
    assert "128 GPUs: " in reason or "64 GPUs: " in reason
    assert "ZeRO-0" not in reason


@pytest.mark.parametrize("batch", [8, 24, 96, 250, 256])
def test_the_global_batch_is_kept_exactly_by_every_layout(batch):
    placement = place(SMALL, batch=batch)
    layouts = [placement.layout, *placement.alternatives, *placement.fallbacks, *placement.runners_up]
    for layout in layouts:
        strategy = layout.strategy
        assert strategy.micro_batch_size_per_gpu * layout.gradient_accumulation_steps * strategy.num_gpus == batch


def test_alternatives_offer_each_number_of_gpus_once_and_fallbacks_need_ever_less():
    placement = place(SEVEN_B)
    counts = [layout.strategy.num_gpus for layout in placement.alternatives]
    assert counts == sorted(set(counts))
    assert placement.strategy.num_gpus in counts
    needs = [placement.memory.device_total_bytes, *(c.device_total_bytes for c in placement.fallbacks)]
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs)) == len(needs) > 1
    assert {c.strategy.num_gpus for c in placement.fallbacks} == {placement.strategy.num_gpus}


def test_what_fits_nowhere_names_the_least_need_and_hardware_that_holds_it():
    node = resolve_cluster("bf16", device="A100-SXM-40GB", gpus_per_node=8)
    with pytest.raises(PlanError) as error:
        place(SEVENTY_B, node, offload="never")
    text = str(error.value)
    assert "8 x A100-SXM-40GB" in text
    assert "of 39.4 GiB" in text
    assert "smallest hardware" in text
    named = int(text.split("smallest hardware that would hold it: ")[1].split(" x ")[0])
    larger = resolve_cluster("bf16", device="A100-SXM-40GB", gpus_per_node=8, num_nodes=named // 8)
    assert place(SEVENTY_B, larger, offload="never").strategy.num_gpus == named


def test_offload_is_refused_where_the_host_is_too_small():
    node = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8, host_memory=64 * 2**30)
    with pytest.raises(PlanError, match="host memory"):
        place(SEVEN_B, node, offload="always", zero_stages=(3,))


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ({"zero_stages": (2,)}, lambda s: s.zero_stage == 2),
        ({"num_gpus": (4,)}, lambda s: s.num_gpus == 4),
        ({"max_micro_batch_size_per_gpu": 2}, lambda s: s.micro_batch_size_per_gpu <= 2),
        ({"activation_checkpointing": "always"}, lambda s: s.activation_checkpointing),
        ({"offload": "always"}, lambda s: s.offload == "optimizer" and s.zero_stage == 3),
    ],
)
def test_rules_bind(rules, allowed):
    assert allowed(place(SMALL, **rules).strategy)


def test_a_larger_margin_leaves_more_of_the_device_free():
    tight, wide = place(SMALL, memory_margin=0.0), place(SMALL, memory_margin=0.7)
    assert wide.memory.peak_allocated_bytes < 0.3 * H100_NODE.device_memory_bytes < tight.memory.device_total_bytes


def test_points_share_a_gpu_only_as_far_as_memory_goes():
    assert place(SMALL, points_per_gpu=4, max_micro_batch_size_per_gpu=1).points_per_gpu == 4
    assert place(ONE_B, points_per_gpu=4, num_gpus=(1,)).points_per_gpu == 2
    assert place(SEVEN_B, points_per_gpu=4).points_per_gpu == 1


def test_a_price_gives_the_cost_of_a_run():
    priced = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8, price_per_gpu_hour=3.0)
    placement = place(SMALL, priced)
    assert placement.predicted_cost == pytest.approx(3.0 * placement.predicted_gpu_hours)
    assert place(SMALL).predicted_cost is None


def test_a_placement_survives_json():
    adapter = TypeAdapter(Placement)
    placement = place(SEVEN_B)
    assert adapter.validate_json(adapter.dump_json(placement)) == placement


def test_other_numbers_of_gpus_are_offered_only_where_closed_forms_leave_no_doubt():
    placement = place(SEVEN_B)
    others = [c for c in placement.alternatives if c.strategy.num_gpus != placement.strategy.num_gpus]
    assert others
    assert all(c.device_total_bytes <= CLEARLY_FITS * H100_NODE.device_memory_bytes for c in others)
    fitting = (placement.layout, *placement.runners_up)
    assert any(c.device_total_bytes > CLEARLY_FITS * H100_NODE.device_memory_bytes for c in fitting)


def test_points_that_may_share_a_gpu_get_micro_batches_that_leave_room_for_the_others():
    alone, shared = place(SMALL), place(SMALL, points_per_gpu=4)
    assert alone.points_per_gpu == 1
    assert shared.points_per_gpu == 4
    assert shared.strategy.micro_batch_size_per_gpu < alone.strategy.micro_batch_size_per_gpu


def test_offload_leaves_host_memory_for_pinned_buffers_and_the_processes():
    states = 20 * SEVEN_B.parameters.total
    tight = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=1, host_memory=states + 2**30)
    with pytest.raises(PlanError, match="host memory"):
        place(SEVEN_B, tight, offload="always", zero_stages=(3,))
    roomy = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=1, host_memory=2 * states)
    assert place(SEVEN_B, roomy, offload="always", zero_stages=(3,)).strategy.offload == "optimizer"


def test_every_network_card_of_a_node_carries_a_part_of_the_traffic():
    profile = profile_decoder(SEVEN_B, "bf16")
    strategy = Strategy(3, 16, 1, False, "none", "bf16")
    slow_links = {"device": "H100-SXM", "gpus_per_node": 8, "num_nodes": 2, "inter_node_bandwidth": 12.5e9}
    per_card = resolve_cluster("bf16", **slow_links)
    seconds = step_seconds(profile, strategy, 1, 1e12, per_card)
    sent = 15 / 16 * 4 * 3 * profile.num_params
    assert sent / (8 * 12.5e9) < seconds < 2 * sent / (8 * 12.5e9)


def test_recomputation_under_zero3_gathers_the_weights_once_more():
    profile = profile_decoder(SEVEN_B, "bf16")
    slow = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8, intra_node_bandwidth=1e9)
    plain, recomputed = (
        step_seconds(profile, Strategy(3, 8, 1, flag, "none", "bf16"), 1, 1e12, slow) for flag in (False, True)
    )
    assert recomputed / plain == pytest.approx(4 / 3, rel=0.02)


def test_gradients_of_every_micro_batch_are_reduced_under_zero2_and_those_of_a_step_under_zero1():
    profile = profile_decoder(SEVEN_B, "bf16")
    slow = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8, intra_node_bandwidth=1e8)

    def ratio(stage):
        one, four = (step_seconds(profile, Strategy(stage, 8, 1, True, "none", "bf16"), n, 1e12, slow) for n in (1, 4))
        return four / one

    assert ratio(2) == pytest.approx((4 + 1) / (1 + 1), rel=0.02), "gradients four times, weights once"
    assert ratio(1) == pytest.approx(1.0, rel=0.02)


def search_of(shape: ModelShape, cluster: Cluster, batch: int, **rules: object) -> Search:
    flops = training_flops_per_token(shape) * shape.context_length
    return Search(profile_decoder(shape, "bf16"), flops, batch, "bf16", cluster, PlacementRules.model_validate(rules))


def test_offload_is_the_last_resort():
    def offloads(search):
        return {layout.strategy.offload for layout in search.best_of_each_layout()}

    assert offloads(search_of(ONE_B, H100_NODE, 256, offload="allowed")) == {"none"}
    small = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=1, host_memory=2**38)
    assert offloads(search_of(SEVEN_B, small, 256, offload="allowed")) == {"optimizer"}


def test_beyond_one_node_only_whole_nodes_are_taken():
    two = resolve_cluster("bf16", device="H100-SXM", gpus_per_node=8, num_nodes=2)
    assert place(SMALL, two, batch=240, num_gpus=(16,)).strategy.num_gpus == 16
    with pytest.raises(PlanError, match="whole nodes of 8 beyond one"):
        place(SMALL, two, batch=240, num_gpus=(12,))


@pytest.mark.parametrize("gib", [12, 14, 17, 21, 26, 40])
def test_the_micro_batch_is_the_largest_that_fits(gib):
    cluster = replace(H100_NODE, device_memory_bytes=gib * 2**30)
    search = search_of(SMALL, cluster, 2520, num_gpus=(1,), zero_stages=(0,), activation_checkpointing="never")
    sizes = [size for size in range(1, 65) if 2520 % size == 0]
    fitting = [n for n in sizes if replace(search, micro_batch_size_per_gpu=n).best_of_each_layout()]
    found = [layout.strategy.micro_batch_size_per_gpu for layout in search.best_of_each_layout()]
    assert found == fitting[-1:]
    assert fitting


def test_gpu_hours_are_of_all_gpus():
    placement = place(SEVEN_B)
    assert placement.strategy.num_gpus > 1
    assert placement.predicted_gpu_hours == pytest.approx(
        placement.predicted_seconds / 3600 * placement.strategy.num_gpus
    )


@pytest.mark.parametrize(("hours", "gpus"), [({1: 1.2, 2: 1.0, 4: 1.3}, 2), ({1: 1.04, 2: 1.0, 4: 1.3}, 1)])
def test_points_laid_out_alike_take_more_gpus_only_where_that_is_clearly_cheaper(hours, gpus):
    def place(point, count, micro_batch):
        return SimpleNamespace(num_gpus=count, predicted_gpu_hours=hours[count])

    placed = _place_alike(["first", "second"], place, (1, 2, 4), 8, 8, "its loss looks at a batch")
    assert [each.num_gpus for each in placed] == [gpus, gpus]
