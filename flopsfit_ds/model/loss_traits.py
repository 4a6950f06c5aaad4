"""What must be known of a loss before anything is planned: what its mean counts, and whether the layout changes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CountedEntries:
    """Which entries of a batch are the targets that a mean loss is taken over: all but those that are -100.

    Attributes:
        leaf: Number of their tensor among the tensors of a batch (inputs, targets).
        start: First position that counts; 1 where a model shifts its labels by itself.
    """

    leaf: int
    start: int = 0


@dataclass(frozen=True)
class LossTraits:
    """What was seen of a loss on a small model.

    Attributes:
        takes_logits: It wants the `.logits` of what the model returns.
        sample_by_sample: The loss of a sample takes a forward pass of its own, for outputs have no row a sample.
        counted: The targets that it is a mean over; None where every sample counts alike.
        counts_in_heldout: Whether held-out samples count by their targets too.
        masked: Targets that do not count were seen in the data.
        depends_on_layout: Why micro-batch and GPUs change it; None where they do not.
        needs_one_gpu: What depends on the layout cannot be had right on several GPUs.
        needs_whole_batches: The loss of a sample depends on the others of its batch.
    """

    takes_logits: bool = False
    sample_by_sample: bool = False
    counted: CountedEntries | None = None
    counts_in_heldout: bool = False
    masked: bool = False
    depends_on_layout: str | None = None
    needs_one_gpu: bool = False
    needs_whole_batches: bool = False

    def identity(self) -> dict[str, Any]:
        """What changes a loss that was measured before this was known; empty for all others, whose ids stay."""
        found: dict[str, Any] = {}
        if self.sample_by_sample:
            found["heldout"] = "sample by sample"
        if self.counted is not None and self.masked:
            found["weights"] = "real targets"
        return found
