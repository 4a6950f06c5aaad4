"""A mixture of experts of which all but these is frozen."""

from __future__ import annotations

from helpers.study.foreign_models import CONTEXT, EXPERTS, FOREIGN, LAYERS, VOCAB, Mixtral, expert_flops, of_tokens

NAME = "Mixtral's experts"


class MixtralExperts(Mixtral):
    """The inputs of its blocks of experts need no gradient."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(".experts." in name)


def spared_flops(width: int) -> int:
    """Frozen weights have no gradients, and in the first layer no input has one, up to what the experts pass on."""
    weights = LAYERS * (3 * width**2 + width * EXPERTS) + width * VOCAB
    inputs = 11 * width**2 + width * EXPERTS
    return CONTEXT * (2 * weights + 2 * inputs + 8 * CONTEXT * width)


FOREIGN[NAME] = of_tokens(
    MixtralExperts,
    lambda width: expert_flops(width, 12),
    spared=spared_flops,
    idle=lambda width: LAYERS * (EXPERTS - 2) * 6 * width**2,
)
