"""Muon by DeepSpeed's class, which alone trains whole matrices under every ZeRO stage.

`torch.optim.Muon` takes parameters of two dimensions only: no experts in one tensor, and no flat parts, which is all
that ZeRO-1 to 3 leave an optimiser. DeepSpeed's orthogonalises whole gradients before they are parted, and does so at
ZeRO-0 too, with the same arithmetic: without clipping losses agree to the last digits at all stages (docs/measured.md).
Which weights it takes is told by a mark on each parameter; DeepSpeed's own marks go by names (a finding), ours by kind.
"""

from __future__ import annotations

from typing import Any

import torch

from flopsfit_ds.plan.recipe.recipe import Recipe


def build_muon(taken: list[dict[str, Any]], rest: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """Muon for some groups of parameters, AdamW for the others.

    Args:
        taken: By Muon, with rate and decay.
        rest: All others.
        recipe: Of the run.
    """
    _run_uncompiled()
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    plan = recipe.optimizer
    assert plan is not None
    for groups, use_muon in ((taken, True), (rest, False)):
        for parameter in (parameter for group in groups for parameter in group["params"]):
            parameter.use_muon = use_muon
    ours = [{**group, "use_muon": True, "momentum": plan.option("momentum"), "ns_method": "gram"} for group in taken]
    theirs = [
        {**group, "use_muon": False, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.epsilon} for group in rest
    ]
    return MuonWithAuxAdam(ours + theirs, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": True})


def _run_uncompiled() -> None:
    """Let Muon's arithmetic run as written: compiled, it takes a compiler and seconds a shape for a few products."""
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    for name in ("zeropower_via_newtonschulz5", "zeropower_via_gram_newtonschulz", "muon_update"):
        plain = getattr(getattr(original_muon, name), "_torchdynamo_orig_callable", None)
        if plain is not None:
            setattr(original_muon, name, plain)
    muon_optimizer.muon_update = original_muon.muon_update
