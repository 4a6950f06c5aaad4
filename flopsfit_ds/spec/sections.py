"""The sections of a sweep spec: what the user wants, validated, frozen, extra keys forbidden."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from flopsfit_ds.base.units import parse_quantity
from flopsfit_ds.spec.data import AnyData, FileSource, StdlibData
from flopsfit_ds.spec.fit_options import DEFAULT_COUNT, DEFAULTS, LawName, LossName, ParameterCount, Resampling
from flopsfit_ds.spec.models.hf import HfModel
from flopsfit_ds.spec.quantities import (
    Bytes,
    Count,
    JsonMapping,
    Name,
    NonNegative,
    OpenFraction,
    Probability,
    Quantity,
    Resamples,
    Seconds,
    number_schema,
)
from flopsfit_ds.spec.section import Section
from flopsfit_ds.spec.training import Training

ZeroStage = Literal[0, 1, 2, 3]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Scalar = str | int | float | bool | None
LEAST_FIRST_RUNS = 6
"""Of a design that chooses its runs by a law: one more than a law of five parameters has."""


class DecoderModel(Section):
    """The built-in family: pre-RMSNorm decoder with SDPA attention, and rotary positions and SwiGLU by default."""

    family: Literal["decoder"] = "decoder"
    vocab_size: Count = 256
    """Number of token ids; 256 for bytes."""
    context_length: Count = 1024
    """Tokens a sequence."""
    head_dim: Count = 64
    """Width of one attention head; the model's width is a multiple of it. Even, for rotary positions."""
    width_per_layer: Quantity = 64
    """Aimed ratio of width to number of layers."""
    mlp_ratio: Quantity = 8 / 3
    """Width of the feed-forward layer over the model's width; with `activation: gelu`, 4 has as many parameters."""
    mlp_multiple_of: Count = 8
    """That width is rounded up to a multiple of this."""
    query_heads_per_kv_head: Count = 1
    """Grouped-query attention: how many query heads share a key-value head; 1 is multi-head attention."""
    tied_embeddings: bool = False
    """Use the token embedding as output head."""
    rope_base: Quantity = 10000
    """Base of the rotary frequencies."""
    qk_norm: bool = False
    """Queries and keys of each head go through an RMSNorm of their own."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """Of the feed-forward layer: `swiglu` has three matrices, one a gate; `gelu` two, with (exact) GELU between."""
    depth_scaled_init: bool = False
    """What a layer adds is drawn with a deviation of 0.02 / sqrt(2 l) in the l-th layer, instead of l the number of
    layers in all."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How the model knows where a token stands: rotated queries and keys, or a learned vector for each position."""
    logit_softcap: NonNegative = 0.0
    """Logits are kept below this by s tanh(logit / s), in training and where a loss is measured; 0 for none."""
    z_loss_weight: NonNegative = 0.0
    """How much the square of each token's log-partition function counts in training, such as 1e-4; held-out losses are
    without it."""
    sliding_window: Count | None = None
    """Tokens that a query of a local layer sees, itself among them; without it all layers see all that came before."""
    sliding_window_pattern: Annotated[tuple[Literal["local", "global"], ...], Field(min_length=1)] = ("local",)
    """Which layers are local, repeated from the first layer on: five times `local` and a `global` make every sixth
    layer see all."""
    attention_across_documents: bool = True
    """Whether a token sees those of the documents before its own in a sequence; `false` where it is known where
    documents end."""

    @model_validator(mode="after")
    def _windows(self) -> DecoderModel:
        window, pattern = self.sliding_window, self.sliding_window_pattern
        if window is None:
            if "sliding_window_pattern" in self.model_fields_set:
                raise ValueError("sliding_window_pattern says nothing without sliding_window; write how many tokens")
        elif window >= self.context_length:
            raise ValueError(
                f"sliding_window {window} hides nothing of a context_length of {self.context_length}; write less, or "
                "leave it out"
            )
        elif "local" not in pattern:
            raise ValueError("sliding_window_pattern has no local layer; write one, or leave sliding_window out")
        return self

    @model_validator(mode="after")
    def _even_heads(self) -> DecoderModel:
        if self.head_dim % 2 and self.positions == "rotary":
            raise ValueError(
                f"head_dim {self.head_dim} is odd; rotary positions need an even number (or write positions: learned)"
            )
        if self.positions == "learned" and "rope_base" in self.model_fields_set:
            raise ValueError("rope_base says nothing to positions: learned; leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is left out can be read back."""
        values = dump(self)
        if self.positions == "learned":
            values.pop("rope_base", None)
        if self.sliding_window is None:
            values.pop("sliding_window_pattern", None)
        return values


class ClassModel(Section):
    """A class of the user's own, called as `model(tokens) -> logits`; needs `--allow-import`."""

    family: Literal["class"]
    class_path: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`package.module:Class`."""
    size_parameter: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
    """The constructor's integer argument that grows the model."""
    size_multiple_of: Count = 1
    """The size parameter is a multiple of this."""
    arguments: dict[str, Scalar] = Field(default={})
    """The constructor's other arguments."""
    vocab_size: Count = 256
    """Number of token ids the class was built for."""
    context_length: Count = 1024
    """Tokens a sequence."""
    approximate_flops: bool = False
    """Whether FLOPs may be 6 N D where the class's operations cannot be counted; without it, that is an error."""


class _BudgetsDesign(Section):
    """Compute budgets, and several sizes around the expected optimum of each."""

    compute_budgets: Annotated[tuple[Quantity, ...], Field(min_length=1)]
    """Training FLOPs of a point."""
    sizes_per_budget: Count = 5
    """Model sizes at each budget."""
    size_span: Quantity = 10
    """Largest over smallest size at one budget."""
    tokens_per_parameter: Quantity = 20
    """Expected optimum: tokens for each parameter (all parameters counted) around which the sizes lie."""
    tokens_per_parameter_exponent: Annotated[float, BeforeValidator(parse_quantity), number_schema([0])] = 0.0
    """How the expected tokens per parameter grow with compute, relative to the first budget: (C / C_first)^exponent."""

    @model_validator(mode="after")
    def _span(self) -> _BudgetsDesign:
        if self.sizes_per_budget > 1 and self.size_span <= 1:
            raise ValueError(
                f"size_span {self.size_span:g} must be greater than 1: it is the largest over the smallest size"
            )
        return self


class IsoflopDesign(_BudgetsDesign):
    """For each compute budget, several sizes around the expected optimum (Chinchilla's approach 2)."""

    method: Literal["isoflop"] = "isoflop"


class AdaptiveDesign(_BudgetsDesign):
    """A first batch as `isoflop` has it, then batches chosen by what they tell of the optimum at fit.target_compute."""

    method: Literal["adaptive"]
    gpu_hours: Quantity
    """What all batches together may take, the first too: device-hours (on a CPU slot-hours) of training loops."""
    num_params_error: Quantity | None = None
    """Standard error of ln N* at the target at which it stops: 0.1 is ten per cent; without it, N* stops nothing."""
    loss_error: Quantity | None = None
    """Standard error of ln L* at the target at which it stops: 0.01 is one per cent; without it, L* stops nothing."""
    batches: Count = 3
    """Batches after the first, at most; each may spend its even share of what is left."""
    runs_per_batch: Count = 8
    """Runs of a chosen batch, at most."""

    @model_validator(mode="after")
    def _carries_a_law(self) -> AdaptiveDesign:
        runs = len(set(self.compute_budgets)) * self.sizes_per_budget
        if len(set(self.compute_budgets)) < 2 or runs < LEAST_FIRST_RUNS:
            raise ValueError(
                f"the first batch, {len(set(self.compute_budgets))} budgets of {self.sizes_per_budget} sizes, carries "
                f"no law to choose by; write two or more compute_budgets and {LEAST_FIRST_RUNS} or more runs in all"
            )
        return self


class LadderDesign(Section):
    """Every size at every ratio of tokens to parameters."""

    method: Literal["ladder"]
    num_params: Annotated[tuple[Quantity, ...], Field(min_length=1)]
    """Sizes aimed at (all parameters counted)."""
    tokens_per_parameter: Annotated[tuple[Quantity, ...], Field(min_length=1)]
    """Training tokens for each parameter."""


class DesignPoint(Section):
    """One training: a size and either its tokens or its compute."""

    num_params: Quantity
    """Size aimed at (all parameters counted)."""
    num_tokens: Quantity | None = None
    """Training tokens."""
    compute: Quantity | None = None
    """Training FLOPs."""

    @model_validator(mode="after")
    def _one_length(self) -> DesignPoint:
        if (self.num_tokens is None) == (self.compute is None):
            raise ValueError("a point takes either num_tokens or compute, one of the two")
        return self


class PointsDesign(Section):
    """A list of points."""

    method: Literal["points"]
    points: Annotated[tuple[DesignPoint, ...], Field(min_length=1)]
    """The trainings."""


class Hardware(Section):
    """The machine the sweep is planned for."""

    device: str = "auto"
    """A GPU of the table (`H100-SXM`), `cpu`, `custom`, or `auto`: what this machine has."""
    gpus_per_node: Count | None = None
    """GPUs of a node (CPU slots for `cpu`); without it 8, but for `auto` and `cpu` what this machine has."""
    num_nodes: Count = 1
    """Nodes."""
    device_memory: Bytes | None = None
    """Memory of one device; without it, the table's."""
    host_memory: Bytes | None = None
    """Memory of a node's host; without it, this machine's, or what the table says."""
    peak_flops: Quantity | None = None
    """Dense FLOP/s of one device at the sweep's precision; without it, the table's."""
    intra_node_bandwidth: Quantity | None = None
    """Bytes a second between two GPUs of a node, each way."""
    inter_node_bandwidth: Quantity | None = None
    """Bytes a second that one GPU has to other nodes, each way."""
    price_per_gpu_hour: NonNegative | None = None
    """Money for an hour of one GPU, in any currency."""


class PlacementRules(Section):
    """What the planner may choose from when it fits a point to GPUs."""

    zero_stages: Annotated[tuple[ZeroStage, ...], Field(min_length=1)] = (0, 1, 2, 3)
    """ZeRO stages allowed."""
    num_gpus: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Numbers of GPUs allowed a point; without it, powers of two up to what there is."""
    offload: Literal["never", "allowed", "always"] = "allowed"
    """Whether optimiser states (at ZeRO-3) may live in host memory."""
    activation_checkpointing: Literal["never", "allowed", "always"] = "allowed"
    """Whether activations may be recomputed in the backward pass."""
    max_micro_batch_size_per_gpu: Count = 64
    """Largest number of sequences a GPU takes at once."""
    memory_margin: OpenFraction = 0.05
    """Share of a device's memory that is left free for fragmentation."""
    moldable: bool = True
    """Whether a point may be trained on another of its feasible numbers of GPUs where that shortens the sweep."""
    points_per_gpu: Count = 1
    """How many one-GPU points may share a GPU, where memory allows it."""
    communication: Literal["fp32", "bf16"] = "fp32"
    """What linear layers' weights and gradients cross between GPUs in, where `precision` is bf16. `bf16` halves the
    traffic, rounds gradients before they are summed, and is part of a run's identity."""
    deepspeed: JsonMapping = ""
    """Keys of DeepSpeed's own configuration, over those that the plan writes: how it sends and stores, not what it
    trains. Part of a run's identity, since sums in another order round otherwise."""


class Fit(Section):
    """How the law is fitted."""

    law: LawName = DEFAULTS.law
    """Form of the law."""
    loss: LossName = DEFAULTS.loss
    """What the solver minimises."""
    huber_delta: Quantity = DEFAULTS.huber_delta
    """Where the Huber loss turns from square to linear."""
    parameters: ParameterCount = DEFAULT_COUNT
    """Which parameters N counts, and the design's sizes with it where they are total or active; without it all, or the
    active ones where a plan's models hold experts."""
    bootstrap_samples: Resamples = DEFAULTS.bootstrap_samples
    """Resamples for the intervals; 0 for none."""
    bootstrap: Resampling = DEFAULTS.bootstrap
    """What is resampled."""
    level: Probability = DEFAULTS.level
    """Probability of the intervals."""
    target_compute: Quantity | None = DEFAULTS.target_compute
    """FLOPs of the run to be predicted; without it, ten times the largest budget."""
    heldout: str | None = None
    """Name of the held-out set whose loss is fitted; without it, the loss on the end of `data`."""
    loss_floor: Quantity | None = DEFAULTS.loss_floor
    """The floor E where it is known, such as the entropy of the text; without it, fitted."""

    def for_points(self) -> dict[str, Any]:
        """The keywords of `fit_scaling_law`: all but what N counts and which loss it is, which records answer."""
        return self.model_dump(exclude={"parameters", "heldout"})


class Execution(Section):
    """How runs are carried out; nothing here changes a loss."""

    max_attempts: Count = 3
    """How often a point is tried before it counts as failed."""
    hang_timeout: Seconds = 600.0
    """A run that is silent for this long, and for five of its own steps, is ended and tried again."""
    simulate_memory: bool = True
    """Points that nearly fill a GPU are simulated before they are trained, and moved where they are too big."""
    trust_shared_folder: bool = False
    """Go on from checkpoints in a folder that another user owns, or that group or world can write."""
    slurm_partition: str | None = None
    """SLURM partition of the jobs."""
    slurm_account: str | None = None
    """SLURM account of the jobs."""
    slurm_max_jobs: Count = 32
    """Jobs in the queue at once."""


class SweepSpec(Section):
    """What to study: the whole of a `spec.yaml`."""

    name: Name
    """Name of the sweep and of its folder: lower-case letters, digits, underscore, and inside also dot and dash."""
    output_root: str = "outputs"
    """Folder in which the sweep's folder lies, relative to where the command is run."""
    model: Annotated[DecoderModel | ClassModel | HfModel, Field(discriminator="family")] = DecoderModel()
    data: Annotated[AnyData, Field(discriminator="source")] = StdlibData()
    heldout: dict[Name, Annotated[FileSource, Field(discriminator="source")]] = Field(default={})
    """Further held-out sets by name, each a source whose last `heldout_tokens` are measured, and none trained on."""
    design: Annotated[IsoflopDesign | LadderDesign | PointsDesign | AdaptiveDesign, Field(discriminator="method")]
    training: Training = Training()
    hardware: Hardware = Hardware()
    placement: PlacementRules = PlacementRules()
    fit: Fit = Fit()
    execution: Execution = Execution()
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers that are told of all runs and get the report; one that fails costs the sweep nothing."""

    @model_validator(mode="after")
    def _known_heldout(self) -> SweepSpec:
        if self.fit.heldout is not None and self.fit.heldout not in self.heldout:
            named = ", ".join(self.heldout) or "none"
            raise ValueError(f"fit.heldout: {self.fit.heldout!r} is no set of heldout; there is {named}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_tags(cls, data: Any) -> Any:
        """A section that does not name its kind is of the default kind."""
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        for section, tag, kind in (
            ("model", "family", "decoder"),
            ("data", "source", "python-stdlib"),
            ("design", "method", "isoflop"),
        ):
            if isinstance(filled.get(section), dict) and tag not in filled[section]:
                filled[section] = {tag: kind, **filled[section]}
        return filled

    @model_validator(mode="after")
    def _trunks_are_known_first(self) -> SweepSpec:
        if isinstance(self.design, AdaptiveDesign) and self.training.one_trunk:
            raise ValueError(
                "design.method adaptive with training.one_trunk: a trunk must know its branches before it is trained; "
                "set training.one_trunk to false"
            )
        return self
