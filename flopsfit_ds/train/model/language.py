"""A language model of any family, built from its shape."""

from __future__ import annotations

import torch

from flopsfit_ds.base.usercode import import_class
from flopsfit_ds.model.architecture import ClassShape, LanguageShape, ModelShape
from flopsfit_ds.train.model.decoder import Decoder
from flopsfit_ds.train.model.mup import ScaledClass


def build_language_model(shape: LanguageShape, activation_checkpointing: bool) -> torch.nn.Module:
    """The built-in decoder, the user's class with its arguments, or a model of transformers.

    Raises:
        DataError: The installed transformers makes another model than the one that was planned.
    """
    if isinstance(shape, ModelShape):
        return Decoder(shape, activation_checkpointing)
    if isinstance(shape, ClassShape):
        model_class = import_class(shape.class_path)
        return (model_class if shape.mup is None else ScaledClass(model_class, shape.mup))(**dict(shape.arguments))
    from flopsfit_ds.train.model.hf import build_hf  # transformers takes seconds to load, for no other family

    return build_hf(shape, activation_checkpointing)
