"""Read a spec from YAML, with errors that say where, what was found, and what is allowed."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.base.storage import KIND_WORDS, kind_of
from flopsfit_ds.base.text import shown
from flopsfit_ds.spec.data import FileSource
from flopsfit_ds.spec.sections import SweepSpec

_TAGS = {"model": "family", "data": "source", "design": "method"}
_INNER_TAGS: dict[tuple[str | int, ...], str] = {("training", "optimizer"): "name"}
_NAMED_SOURCES: tuple[tuple[str | int, ...], ...] = (("heldout",), ("data", "sources"))
"""Sections of sources by names of the user's own."""
_LONGEST_TEXT = 2**18
_MAX_NODES = 20_000
"""Two thousand points with all their keys; PyYAML makes some 20,000 nodes a second."""
_MAX_ALIASES = 1000
"""Each costs what it stands for: a thousand is beyond what people write."""
_DEEPEST = 40
"""Far beyond the levels of a spec; PyYAML recurses, and Python ends at a thousand calls."""
_MAX_MESSAGES = 20
"""A screen."""
_LONGEST_KEY = 80
"""Characters of what was found that a message of one line repeats."""
_ALLOWED = {
    "bool_parsing": "allowed: true, false",
    "bool_type": "allowed: true, false",
    "string_type": 'this takes text; write it in quotes, such as "8"',
    "too_short": "give at least one",
}


@dataclass(frozen=True)
class _Source:
    """A spec's text as data, the line on which each key stands, and the overrides by path."""

    name: str
    data: dict[str, Any]
    lines: dict[tuple[str | int, ...], int]
    overrides: dict[tuple[str | int, ...], str]

    def where(self, path: tuple[str | int, ...]) -> str:
        """`file:line: key.path`, with the line of the nearest enclosing key in the file; or the override at fault."""
        dotted = ".".join(str(part)[:_LONGEST_KEY] for part in path)
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"override {shown(self.overrides[path[:length]])}: {dotted}"
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}: {dotted}"
        for keys, override in self.overrides.items():
            if path and keys[: len(path)] == path:
                return f"override {shown(override)}: {dotted}"
        return f"{self.name}: {dotted}" if dotted else self.name


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read and validate a `spec.yaml`.

    Args:
        path: The file.
        overrides: `section.key=value` each; the value is YAML.

    Raises:
        SpecError: The file is missing, is no YAML, or does not describe a valid sweep. The message names the line,
            what was found and what is allowed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LONGEST_TEXT:
            raise SpecError(f"{path}: {_too_long(path.stat().st_size)}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such file; `flopsfit-ds specs` lists the specs that come with the package"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        _refuse_other_kinds(path)
        raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    _refuse_other_kinds(path)
    return parse_spec(text, overrides, name=str(path))


def _refuse_other_kinds(path: Path) -> None:
    """A table may be YAML too, and is still no spec."""
    kind = kind_of(path)
    if kind in ("folder", "sweep", "binary", "fit", "forecast", "table"):
        inner = path / "spec.yaml"
        remedy = f"its spec is {inner}" if inner.is_file() else "a spec is a YAML file, as `flopsfit-ds init` writes"
        raise SpecError(f"{path}: cannot be read as a spec: it is {KIND_WORDS[kind]}; {remedy}")


def parse_spec(text: str, overrides: Sequence[str] = (), name: str = "spec") -> SweepSpec:
    """Validate the text of a spec; like `load_spec`, for a text at hand.

    Raises:
        SpecError: As `load_spec`.
    """
    source = _read_yaml(text, name)
    for override in overrides:
        source.overrides[_apply_override(source.data, override)] = override
    return _validate(source)


def validate_spec(values: dict[str, Any], name: str = "spec") -> SweepSpec:
    """Validate a spec given as plain values.

    Raises:
        SpecError: As `load_spec`, without lines.
    """
    return _validate(_Source(name, values, {}, {}))


def _validate(source: _Source) -> SweepSpec:
    try:
        return SweepSpec.model_validate(source.data)
    except ValidationError as error:
        items: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
        # a list whose items are all wrong is reported by pydantic as too short as well
        items = [item for item in items if item["type"] != "too_short" or not _has_wrong_items(item["loc"], items)]
        messages = list(dict.fromkeys(_explain(item, source) for item in items[:_MAX_MESSAGES]))
        if len(items) > _MAX_MESSAGES:
            messages.append(f"{source.name}: and {len(items) - _MAX_MESSAGES} more errors")
        raise SpecError("\n".join(messages)) from None


def _has_wrong_items(place: tuple[str | int, ...], items: Sequence[dict[str, Any]]) -> bool:
    """Whether an error is about something within a list."""
    return any(len(item["loc"]) > len(place) and item["loc"][: len(place)] == place for item in items)


def spec_json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **SweepSpec.model_json_schema()}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, within limits: a file of some lines can name itself into billions of values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = self._num_aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node, counted."""
        self._num_nodes += 1
        self._num_aliases += self.check_event(yaml.AliasEvent)
        self._depth += 1
        for number, most, what in (
            (self._depth, _DEEPEST, "levels deep"),
            (self._num_nodes, _MAX_NODES, "keys and values"),
            (self._num_aliases, _MAX_ALIASES, "aliases (`*name`)"),
        ):
            if number > most:
                raise SpecError(f"line {self.peek_event().start_mark.line + 1}: more than {most} {what}, for a spec")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _num_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Nodes below one, each alias counted with all that it stands for; without end where one stands inside itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        inner = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_num_values(each, known) for each in inner)
    return known[id(node)]


def _too_long(length: int) -> str:
    return f"{length} characters are too long for a spec, of which {_LONGEST_TEXT} are read"


def load_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """A text's YAML as nodes and as plain values, within limits of size, depth and aliases.

    Raises:
        SpecError: It is beyond them.
        yaml.YAMLError: It is no YAML.
        ValueError: A number or date of it is none.
    """
    if len(text) > _LONGEST_TEXT:
        raise SpecError(_too_long(len(text)))
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if _num_values(node, {}) > _MAX_NODES:
            raise SpecError(f"its aliases (`*name`) stand for more than {_MAX_NODES} values, or for themselves")
        return node, None if node is None else loader.construct_document(node)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    finally:
        loader.dispose()


def _read_yaml(text: str, name: str) -> _Source:
    try:
        node, data = load_yaml(text)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise SpecError(f"{name}{line}: this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{name}: this is not YAML: {shown(str(error), 200)}") from None
    except RecursionError:
        raise SpecError(f"{name}: this is nested too deeply for a spec") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise SpecError(f"{name}: a spec is a mapping with keys such as name, design and model; found {found}")
    if data and not data.keys() & SweepSpec.model_fields.keys():
        keys = ", ".join(shown(key) for key in list(data)[:_MAX_MESSAGES])
        raise SpecError(f"{name}: no spec: it has no key of one, such as name, design and model; found {keys}")
    lines: dict[tuple[str | int, ...], int] = {}
    _walk(node, (), lines, name, set())
    return _Source(name, data, lines, {})


def _walk(
    node: yaml.Node | None,
    path: tuple[str | int, ...],
    lines: dict[tuple[str | int, ...], int],
    name: str,
    visited: set[yaml.Node],
) -> None:
    """Note the line of every key, and refuse a key that stands twice (YAML would take the last, silently)."""
    if node is None or node in visited:  # an alias may even stand inside what it names
        return
    visited.add(node)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen and key != "<<":
                dotted = ".".join(str(part) for part in (*path, key))
                raise SpecError(
                    f"{name}:{line}: {dotted}: this key already stands on line {seen[key]}; keep one of the two"
                )
            seen[key] = line
            lines[(*path, key)] = line
            _walk(value_node, (*path, key), lines, name, visited)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _walk(item, (*path, index), lines, name, visited)


def _apply_override(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put an override's value into the data; returns its path."""
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise SpecError(
            f"override {shown(override)}: write it as section.key=value, for example training.precision=fp32"
        )
    try:
        _, parsed = load_yaml(value)
    except SpecError as error:
        raise SpecError(f"override of {path}: {error}") from None
    except (yaml.YAMLError, ValueError):
        raise SpecError(f"override {shown(override)}: {shown(value)} is not YAML") from None
    except RecursionError:
        raise SpecError(f"override of {path}: this is nested too deeply for a spec") from None
    target = data
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise SpecError(f"override {shown(override)}: {key} is not a section but {shown(inner)}")
        target = inner
    target[keys[-1]] = parsed
    return tuple(keys)


def _explain(error: dict[str, Any], source: _Source) -> str:
    """One line for one of pydantic's errors."""
    path = _strip_tags(error["loc"])
    kind, found = error["type"], error.get("input")
    where = source.where(path)
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1], source.data)
        near = _nearest(str(path[-1])[:80], known) + _of_each_source(path, known)
        return f"{where}: unknown key{near}; known here: {', '.join(sorted(known))}"
    if kind == "missing":
        return f"{where}: this key is required"
    if kind == "union_tag_invalid":
        where = source.where((*path, _tag_of(path)))
        return _not_one_of(where, error["ctx"]["tag"], error["ctx"]["expected_tags"])
    if kind == "union_tag_not_found":
        return f"{where}: this section needs the key {_tag_of(path)}"
    if kind == "literal_error":
        return _not_one_of(where, found, error["ctx"]["expected"])
    if path[:2] == ("model", "arguments") and len(path) > 2:  # pydantic reports every type that it tried
        where = source.where(path[:3])
        return f"{where}: found {shown(found)}; an argument is text, a number, true, false or null"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{where}: found {_shown(found)}; this is a section and takes keys"
    if kind == "tuple_type":
        example = 1 if found is None else str(found)[:_LONGEST_KEY]
        return f"{where}: found {_shown(found)}; this takes a list, such as [{example}]"
    if kind == "too_short" and error["ctx"]["min_length"] > 1:
        return f"{where}: found {_shown(found)}; give at least {error['ctx']['min_length']}"
    if kind in _ALLOWED:
        return f"{where}: found {_shown(found)}; {_ALLOWED[kind]}"
    if kind == "string_pattern_mismatch":
        return f"{where}: found {shown(found)}; it must match {error['ctx']['pattern']}"
    message = error["msg"].removeprefix("Value error, ")
    said = "" if isinstance(found, (dict, BaseModel)) or shown(found) in message else f"found {shown(found)}; "
    return f"{where}: {said}{message}"


def _shown(found: object) -> str:
    return "nothing" if found is None else shown(found)


def _not_one_of(where: str, found: object, expected: str) -> str:
    """`expected` is pydantic's list: `'a', 'b' or 'c'`."""
    allowed = expected.replace("'", "").replace(" or ", ", ").split(", ")
    return f"{where}: found {shown(found)}{_nearest(str(found)[:_LONGEST_KEY], allowed)}; allowed: {', '.join(allowed)}"


def _strip_tags(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Pydantic puts a union's tag into the path: drop it, the file does not have it."""
    if len(location) > 1 and location[0] in _TAGS:
        location = (location[0], *location[2:])
    for named in _NAMED_SOURCES:
        place = len(named) + 1
        if location[: len(named)] == named and len(location) > place:
            return (*location[:place], *location[place + 1 :])
    if len(location) > 2 and location[:2] in _INNER_TAGS:
        return (*location[:2], *location[3:])
    return location


def _tag_of(path: tuple[str | int, ...]) -> str:
    """The key that chooses the kind of the section at `path`."""
    return "source" if path[:-1] in _NAMED_SOURCES else _INNER_TAGS.get(path) or _TAGS[str(path[0])]


def _nearest(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _of_each_source(path: tuple[str | int, ...], known: Sequence[str]) -> str:
    """Where a key stands beside the sources of a mixture and is one of theirs, where to write it."""
    of_sources = {name for kind in _models_in(FileSource) for name in kind.model_fields}
    if path[:-1] != ("data",) or "sources" not in known or path[-1] not in of_sources:
        return ""
    return f": each source of a mixture has its own; write data.sources.NAME.{path[-1]}"


def _known_keys(path: tuple[str | int, ...], data: Mapping[str, Any]) -> list[str]:
    """Keys that the section at `path` takes."""
    model: Any = SweepSpec
    annotation: Any = SweepSpec
    value: Any = data
    for part in path:
        value = value[part] if isinstance(value, (dict, list, tuple)) else {}  # pyright: ignore[reportArgumentType, reportCallIssue]
        if isinstance(part, str):
            named = typing.get_origin(annotation) is dict
            annotation = typing.get_args(annotation)[1] if named else model.model_fields[part].annotation
            if typing.get_origin(annotation) is not dict:
                model = _choose(_models_in(annotation), value if isinstance(value, dict) else {})
    return list(model.model_fields)


def _choose(models: list[type[BaseModel]], value: Mapping[str, Any]) -> type[BaseModel]:
    """Of a union's classes the one whose tag the value carries; the first where it carries none."""
    for model in models:
        for tag in (*_TAGS.values(), *_INNER_TAGS.values()):
            field = model.model_fields.get(tag)
            if field is not None and value.get(tag) in typing.get_args(field.annotation):
                return model
    return models[0]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
