"""A vision-language model of transformers as a model of tokens: an image, then text, in every sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class VisionLanguage(nn.Module):
    """Tower, projection and language model as the library has them, called without its look at which tokens are images.

    The first tokens of a sequence stand for the image, as many as the projection makes of it; it is black.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.model, self.lm_head = whole.model, whole.get_output_embeddings()
        vision = whole.config.vision_config
        self._image_shape = (getattr(vision, "num_channels", 3), vision.image_size, vision.image_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [batch, tokens] to logits [batch, tokens, vocab]."""
        images = torch.zeros(len(tokens), *self._image_shape, device=tokens.device)
        features = torch.stack(list(self.model.get_image_features(images).pooler_output))
        if features.shape[1] >= tokens.shape[1]:
            raise ValueError(f"an image is {features.shape[1]} tokens; sequences must be longer, with text after it")
        text = self.model.get_input_embeddings()(tokens[:, features.shape[1] :])
        hidden = self.model.language_model(inputs_embeds=torch.cat((features, text), 1), use_cache=False)[0]
        return self.lm_head(hidden)
