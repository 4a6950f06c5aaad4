"""Models of all sizes as planning sees them: what a design may pick from, and what is known of each pick."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.units import format_count
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.data.documents import Documents, look_at_documents
from flopsfit_ds.memory import ModelProfile, profile_decoder
from flopsfit_ds.model.architecture import LEARNED_POSITIONS, DecoderOptions, LanguageShape, ModelShape, SizingRule
from flopsfit_ds.model.flops import FlopsSource, Keys, training_flops_per_token
from flopsfit_ds.plan.recipe.mup import scaled_optimizer, scales
from flopsfit_ds.plan.recipe.optimizers import OptimizerPlan, decoder_moved_from_head, decoder_states
from flopsfit_ds.spec import ClassModel, DecoderModel, SweepSpec, Training
from flopsfit_ds.spec.fit_options import COUNT_WORDS
from flopsfit_ds.spec.training import Precision

_TABLES = frozenset({"embedding.weight", LEARNED_POSITIONS})
"""What the built-in decoder looks up and does not multiply by."""


@dataclass(frozen=True)
class SizedModel:
    """A model of some size, and what planning must know of it.

    Attributes:
        shape: The built-in decoder, a user's class, or a library's model.
        num_params: All parameters.
        num_params_non_embedding: Outside vocabulary-sized tables.
        num_params_trainable: With a gradient.
        num_params_active: That a token makes use of: without the experts that it is not sent to; None where unknown.
        num_params_matrices: In matrices that are multiplied by, the output head among them; None where unknown.
        flops_per_token: Training FLOPs a token.
        flops_source: `counted`, or `6nd` where the user accepted 6 N D.
        profile: What the memory estimate needs.
        sized_by_active: A design's sizes and tokens per parameter mean active parameters.
        moved_from_head: Its optimiser once took layers of a stack, as long as the vocabulary, for heads.
    """

    shape: LanguageShape
    num_params: int
    num_params_non_embedding: int
    num_params_trainable: int
    num_params_active: int | None
    num_params_matrices: int | None
    flops_per_token: float
    flops_source: FlopsSource
    profile: ModelProfile
    sized_by_active: bool = False
    moved_from_head: bool = False

    def identity(self) -> dict[str, Any]:
        """What it adds to a run's identity beside its shape: that it is trained otherwise than it once was."""
        return {"layers_taken_for_heads": False} if self.moved_from_head else {}

    @property
    def num_params_of_design(self) -> int:
        """What a design's sizes and tokens per parameter mean: all parameters, or the active ones."""
        return self.num_params_active if self.sized_by_active and self.num_params_active else self.num_params


class Family(Protocol):
    """Models of all sizes: the built-in decoder, or a class of the user's.

    Attributes:
        warnings: What the user should know of the models taken so far.
    """

    warnings: list[str]

    def nearest(self, num_params: float, taken: Container[int]) -> SizedModel:
        """The model that comes nearest to a number of parameters and does not have a number that is taken.

        Raises:
            PlanError: None is near.
        """
        ...


class DecoderFamily:
    """The built-in decoder in all sizes."""

    def __init__(
        self, model: DecoderModel, training: Training, optimizer: OptimizerPlan | None = None, keys: Keys = ()
    ) -> None:
        self._keys = keys
        self.warnings: list[str] = []
        self._optimizer = optimizer
        self._training = training
        self._rule = SizingRule(
            head_dim=model.head_dim,
            width_per_layer=model.width_per_layer,
            mlp_ratio=model.mlp_ratio,
            mlp_multiple_of=model.mlp_multiple_of,
            query_heads_per_kv_head=model.query_heads_per_kv_head,
            vocab_size=model.vocab_size,
            context_length=model.context_length,
            tied_embeddings=model.tied_embeddings,
            rope_base=model.rope_base,
            options=DecoderOptions(
                qk_norm=model.qk_norm,
                activation=model.activation,
                depth_scaled_init=model.depth_scaled_init,
                positions=model.positions,
                logit_softcap=model.logit_softcap,
                z_loss_weight=model.z_loss_weight,
                sliding_window=model.sliding_window or 0,
                sliding_window_pattern=model.sliding_window_pattern,
                attention_across_documents=model.attention_across_documents,
            ),
        )

    def nearest(self, num_params: float, taken: Container[int]) -> SizedModel:
        """The shape nearest to a number of parameters and not taken.

        Raises:
            PlanError: None lies within a factor of 2, or everything is frozen.
        """
        shape = self._scaled(self._rule.nearest(num_params, taken))
        training = self._training
        optimizer = scaled_optimizer(self._optimizer, shape.mup, training.weight_decay)
        return sized_decoder(shape, training.frozen_parameters, training.precision, optimizer, self._keys)

    def width_near(self, width: float) -> int:
        """The width of the family nearest to one."""
        step = self._rule.head_dim * self._rule.query_heads_per_kv_head
        return max(1, round(width / step)) * step

    def shape_at(self, width: int, depth: int) -> ModelShape:
        """The shape of a width and a depth.

        Raises:
            PlanError: No heads divide it.
        """
        step = self._rule.head_dim * self._rule.query_heads_per_kv_head
        if width % step:
            raise PlanError(f"a width of {width} is no multiple of {step}, what heads that share keys take of it")
        return self._scaled(self._rule.shape(depth, width))

    def _scaled(self, shape: ModelShape) -> ModelShape:
        mup = self._training.mup
        if mup is None:
            return shape
        return replace(shape, mup=scales(mup, shape.hidden_size, shape.num_layers, shape.head_dim))


def decoder_family(spec: SweepSpec, optimizer: OptimizerPlan | None, keys: Keys = ()) -> DecoderFamily:
    """The family of a spec that needs nothing but its numbers, and what a query may see within documents.

    Raises:
        PlanError: The spec names a class of the user's own, which has to be looked at.
    """
    if isinstance(spec.model, ClassModel):
        raise PlanError(
            f"model.class_path: {spec.model.class_path} is code of your own; allow it by "
            f"--allow-import {spec.model.class_path.partition('.')[0].partition(':')[0]}"
        )
    assert isinstance(spec.model, DecoderModel)  # sizes of a library's model come from `study`
    return DecoderFamily(spec.model, spec.training, optimizer, keys)


def documents_of(spec: SweepSpec, corpus: Corpus) -> Documents | None:
    """What attention sees that a spec keeps within documents; None where it goes across them.

    Raises:
        DataError: Where documents end is not known.
    """
    model = spec.model
    if not isinstance(model, DecoderModel) or model.attention_across_documents:
        return None
    windows = {model.context_length, model.sliding_window or model.context_length}
    return look_at_documents(corpus, model.context_length, tuple(windows))


def num_token_ids(spec: SweepSpec) -> int:
    """The vocabulary of all sizes."""
    assert spec.model.vocab_size is not None  # `study` takes it from the configuration where the spec leaves it out
    return spec.model.vocab_size


@functools.lru_cache(maxsize=4096)
def sized_decoder(
    shape: ModelShape,
    frozen: tuple[str, ...],
    precision: Precision,
    optimizer: OptimizerPlan | None = None,
    keys: Keys = (),
) -> SizedModel:
    """What planning needs to know of a decoder, some of its parameters frozen by glob patterns of their names.

    Raises:
        PlanError: A pattern matches nothing, or all are frozen.
    """
    counts = shape.parameters
    tensors = list(shape.tensors()) if frozen else []
    for pattern in frozen:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in tensors):
            some = ", ".join(name for name, _ in tensors if ".0." in name or "blocks" not in name)
            raise PlanError(f"training.frozen_parameters: {pattern!r} matches no parameter; there are {some}, ...")
    held = [item for item in tensors if any(fnmatch.fnmatchcase(item[0], pattern) for pattern in frozen)]
    trainable = counts.total - sum(size for _, size in held)
    if trainable == 0:
        raise PlanError("training.frozen_parameters: nothing is left to train")
    frozen_matrices = sum(size for name, size in held if "norm" not in name and name not in _TABLES)
    names = {name for name, _ in held}
    profile = profile_decoder(
        shape,
        precision,
        num_params_trainable=trainable,
        num_blocks_without_gradient=_frozen_blocks_in_front(shape, names),
    )
    if optimizer is not None:
        profile = replace(profile, states=decoder_states(optimizer, shape, names))
    return SizedModel(
        shape=shape,
        num_params=counts.total,
        num_params_non_embedding=counts.non_embedding,
        num_params_trainable=trainable,
        num_params_active=counts.total,
        num_params_matrices=counts.attention + counts.mlp + shape.vocab_size * shape.hidden_size,
        flops_per_token=training_flops_per_token(shape, frozen_matrices, keys),
        flops_source="counted",
        profile=profile,
        moved_from_head=optimizer is not None and decoder_moved_from_head(optimizer, shape, names),
    )


def all_but(names: Sequence[str], trained: Sequence[str]) -> tuple[str, ...]:
    """Names of parameters that no pattern matches; none where there are no patterns.

    Raises:
        SpecError: A pattern matches nothing.
    """
    for pattern in trained:
        if not fnmatch.filter(names, pattern):
            parts = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
            raise SpecError(f"--train {pattern!r} matches no parameter; parts of the model are {', '.join(parts)}")
    if not trained:
        return ()
    kept = {name for pattern in trained for name in fnmatch.filter(names, pattern)}
    return tuple(name for name in names if name not in kept)


def _frozen_blocks_in_front(shape: ModelShape, frozen: set[str]) -> int:
    """Blocks before which, and in which, nothing is trained: no gradient reaches them."""
    trained = [name for name, _ in shape.tensors() if name not in frozen] if frozen else ["embedding.weight"]
    if not _TABLES.isdisjoint(trained):
        return 0
    first = min((int(name.split(".")[1]) for name in trained if name.startswith("blocks.")), default=shape.num_layers)
    return first


def counts_active(spec: SweepSpec) -> bool:
    """Whether N means active parameters where a model holds experts: unless the user says what N counts."""
    return "parameters" not in spec.fit.model_fields_set or spec.fit.parameters == "active"


def count_active(spec: SweepSpec, models: Sequence[SizedModel], warnings: list[str]) -> SweepSpec:
    """The spec whose law counts active parameters, where models hold experts and the user did not say what to count."""
    for model in models:
        if model.num_params_active is None and model.flops_source == "counted":
            warnings.append(
                f"{model.profile.name} holds experts; how many of its {format_count(model.num_params)} parameters a "
                f"token makes use of is not known; the law's N counts {COUNT_WORDS[spec.fit.parameters]} (the class "
                "can say it by an attribute num_active_parameters)"
            )
            return spec
    sparse = [model for model in models if model.num_params_active not in (None, model.num_params)]
    if not sparse or not counts_active(spec) or spec.fit.parameters == "active":
        return spec
    largest = sparse[-1]
    warnings.append(
        f"{largest.profile.name} holds experts, or layers that only some tokens pass: a token makes use of "
        f"{format_count(largest.num_params_active or 0)} of "
        f"{format_count(largest.num_params)} parameters; the law's N counts active parameters, and so do the design's "
        "sizes and tokens per parameter (write fit.parameters: total for all)"
    )
    return spec.model_copy(update={"fit": spec.fit.model_copy(update={"parameters": "active"})})
