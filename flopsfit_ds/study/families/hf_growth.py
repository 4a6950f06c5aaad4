"""How the fields of a configuration follow from one size: by the ratios of the configuration that it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.spec import HfModel
from flopsfit_ds.study.families.hf_start import make_config, read_start

_WIDTH, _DEPTH = "hidden_size", "num_hidden_layers"
_HEADS = ("num_attention_heads", "num_heads")
_SHARED = ("num_key_value_heads", "n_groups")
"""What several heads have in common: keys and values, or the projections of a state."""
_INNER = (
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner", "ffn_dim",
    "ffn_hidden_size", "mlp_hidden_size", "word_embed_proj_dim", "q_lora_rank", "kv_lora_rank", "lru_width",
)  # fmt: skip
"""Widths that keep their ratio to the model's."""
_INNER_MULTIPLE = 8
"""Of matrices' sides: tensor cores of fp16 and bf16 work on multiples of it."""
_OF_A_HEAD = ("v_head_dim", "head_dim")
_WITH_A_HEAD = ("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "query_pre_attn_scalar")
"""Widths of a head's parts, which keep their ratio to its width; where a configuration derives one, it is left out."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_POSITIONS = "max_position_embeddings"


class Growth:
    """The configurations of all sizes.

    Attributes:
        start: What they grow from.
        vocab_size: Token ids.
        step: Granularity of the size parameter.
        varies_depth: Whether a width may have several depths.
        width_per_layer: Aimed ratio of width to depth.
    """

    def __init__(self, model: HfModel, folder: Path) -> None:
        """Read the rules of a spec.

        Raises:
            SpecError: The start, or a field that is set, is not known.
        """
        self.start = start = read_start(model, folder)
        self._model = model
        self._fixed = {start.checked(name, "fields"): value for name, value in model.fields.items()}
        self._grow = {start.checked(name, "grow"): rule for name, rule in model.grow.items()}
        self._parameter = start.checked(model.size_parameter, "size_parameter")
        width_name, depth_name = start.name_of(_WIDTH), start.name_of(_DEPTH)
        if width_name is None or depth_name is None:
            raise SpecError(f"model: the configuration of {start.architecture} says neither width nor depth by name")
        self._width_name, self._depth_name = width_name, depth_name
        for name in (self._width_name, self._depth_name):
            if name in self._grow:
                raise SpecError(f"model.grow.{name}: width and depth grow by size_parameter and width_per_layer")
        self.vocab_size = model.vocab_size or int(start.get("vocab_size"))
        width, depth = int(start.get(_WIDTH)), int(start.get(_DEPTH))
        self._base_width, self._base_depth = width, depth
        self.width_per_layer = model.width_per_layer or width / depth
        self._heads = next((name for name in map(start.name_of, _HEADS) if name and start.get(name)), None)
        self._shared = next((name for name in map(start.name_of, _SHARED) if name and start.get(name)), None)
        self._per_head, self._head_width = self._width_per_head()
        self._group = self._heads_that_share()
        self.varies_depth = self._parameter == self._width_name and self._depth_name not in self._fixed
        self._patterns = self._periodic_lists()
        self.step = model.size_multiple_of or (self._step() if self._parameter == self._width_name else 1)

    def _width_per_head(self) -> tuple[int, int]:
        """Of the model's width what goes to one head, and the width of a head itself."""
        if self._heads is None:
            return 1, 1
        start, heads = self.start, int(self.start.get(self._heads))
        named = next((start.get(name) for name in _OF_A_HEAD if start.get(name)), None)
        own = int(named or self._base_width // heads)
        head = self._model.head_dim or own
        return max(1, round(head * self._base_width / heads / own)), head

    def _heads_that_share(self) -> int:
        """Heads that a key-value head serves."""
        if self._heads is None or self._shared is None:
            return 1
        fixed = self._fixed.get(self._shared)
        if isinstance(fixed, int):
            return fixed  # the number of heads is a multiple of it
        return max(1, int(self.start.get(self._heads)) // int(self.start.get(self._shared)))

    def _step(self) -> int:
        if self._heads is None:
            return _INNER_MULTIPLE
        fixed = self._fixed.get(self._heads)
        return 2 * fixed if isinstance(fixed, int) else self._per_head * self._group

    def aimed_depth(self, size: int) -> int:
        """Layers of a size at the aimed ratio of width to depth."""
        if self._depth_name in self._fixed:
            return int(self._fixed[self._depth_name])
        if self._parameter == self._depth_name:
            return size
        width = size if self._parameter == self._width_name else self._fixed.get(self._width_name)
        return self._base_depth if width is None else max(1, round(width / self.width_per_layer))

    def fields(self, size: int, depth: int) -> dict[str, Any]:
        """What the configuration of a size sets, by its own names.

        Args:
            size: Of the size parameter, a multiple of `step`.
            depth: Layers.

        """
        start, model = self.start, self._model
        grows_width = self._parameter == self._width_name
        width = size if grows_width else int(self._fixed.get(self._width_name, self._base_width))
        values = {name: value for name, value in start.values.items() if name not in self._patterns}
        values |= {self._width_name: width, self._depth_name: depth, self._parameter: size}
        values |= self._inner_widths(width)
        values |= self._head_fields(width)
        values |= {name: _carried_on(pattern, depth) for name, pattern in self._patterns.items()}
        for name, rule in self._grow.items():
            values[name] = max(1, round(rule.ratio * size / rule.multiple_of)) * rule.multiple_of
        positions = start.name_of(_POSITIONS)
        rotary = start.name_of("rope_parameters") is not None  # no weight belongs to a position
        if positions is not None and (not rotary or int(start.get(positions)) < model.context_length):
            values[positions] = model.context_length
        values |= {name: None for name in _IDS if start.name_of(name) is not None}
        return values | {"vocab_size": self.vocab_size} | self._fixed

    def _inner_widths(self, width: int) -> dict[str, int]:
        found = {}
        for name in map(self.start.name_of, _INNER):
            base = None if name is None else self.start.get(name)
            if name is not None and isinstance(base, int) and base > 0:
                step = 1 if base == self._base_width else _INNER_MULTIPLE
                found[name] = max(1, round(base * width / self._base_width / step)) * step
        return found

    def _head_fields(self, width: int) -> dict[str, int]:
        if self._heads is None:
            return {}
        heads = int(self._fixed.get(self._heads, max(1, width // self._per_head)))
        found = {self._heads: heads}
        if self._shared is not None:
            found[self._shared] = max(1, heads // self._group)
        head = self._head_width
        if self._heads in self._fixed and self._model.head_dim is None:
            head = max(2, round(self._head_width * width / heads / self._per_head / 2) * 2)
        named = next((int(self.start.get(name)) for name in _OF_A_HEAD if self.start.get(name)), None)
        if named is None:
            return found
        for name in map(self.start.name_of, _WITH_A_HEAD):
            base = None if name is None else self.start.get(name)
            settable = name in self.start.values or name in self.start.own_fields()
            if name is not None and settable and isinstance(base, (int, float)) and base > 0:
                found[name] = max(2, round(base * head / named / 2) * 2)
        return found

    def _periodic_lists(self) -> dict[str, list[Any]]:
        """Lists of the start with an entry a layer, by the period that other depths carry on."""
        found = {}
        for name, value in self.start.values.items():
            if not isinstance(value, list) or len(value) != self._base_depth or self._base_depth < 2:
                continue
            if name in self._fixed or name in self._grow:
                continue
            periods = range(1, len(value) // 2 + 1)
            period = next((p for p in periods if all(value[i] == value[i % p] for i in range(len(value)))), None)
            if period is None:
                raise SpecError(
                    f"model.fields: {name} has an entry for each of {self._base_depth} layers and no period; sizes of "
                    f"other depths need it said: fields: {{{name}: [..]}} beside fields: {{{self._depth_name}: ..}}"
                )
            found[name] = value[:period]
        return found

    def check(self, values: dict[str, Any], where: str) -> Any:
        """The configuration of these fields, if it can be built and trained.

        Raises:
            SpecError: transformers refuses it, or changes a field without a word.
            PlanError: Heads do not divide what they have to, or a token is sent to more experts than there are.
        """
        config = make_config(self.start.architecture, values, where)
        for name, value in values.items():
            kept = getattr(config, name, None)
            if isinstance(value, (int, float, str, bool)) and kept != value:
                raise SpecError(
                    f"{where}: transformers makes {name} {kept!r} of {value!r}; leave it out, or write that"
                )
        heads = getattr(config, self._heads, None) if self._heads else None
        shared = getattr(config, self._shared, None) if self._shared else None
        if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
            raise PlanError(
                f"{where}: {heads} heads ({self._heads}) cannot share {shared} ({self._shared}): no whole number each; "
                f"let model.size_multiple_of be a multiple of {self._per_head * max(1, shared)}, or change one of them"
            )
        width = getattr(config, _WIDTH, None)
        owns_head_width = any(self.start.name_of(name) for name in _OF_A_HEAD)
        if isinstance(heads, int) and isinstance(width, int) and not owns_head_width and width % heads:
            raise PlanError(
                f"{where}: a width of {width} is no multiple of {heads} heads; let model.size_multiple_of be a "
                f"multiple of {heads}"
            )
        experts, chosen = getattr(config, "num_local_experts", None), getattr(config, "num_experts_per_tok", None)
        if isinstance(experts, int) and isinstance(chosen, int) and chosen > experts:
            raise PlanError(f"{where}: a token is sent to {chosen} experts (num_experts_per_tok) of {experts}")
        return config


def _carried_on(pattern: list[Any], depth: int) -> list[Any]:
    return [pattern[layer % len(pattern)] for layer in range(depth)]
