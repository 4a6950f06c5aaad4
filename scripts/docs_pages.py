"""The two pages of the documentation that come from the code: every field of a spec, and the public names.

A hook of MkDocs (`hooks` in mkdocs.yml): the pages are made when the site is built, so they cannot be out of date.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

API_MODULES = (
    "flopsfit_ds",
    "flopsfit_ds.spec",
    "flopsfit_ds.records",
    "flopsfit_ds.fit",
    "flopsfit_ds.decide",
    "flopsfit_ds.engine",
    "flopsfit_ds.memory",
    "flopsfit_ds.simulate",
    "flopsfit_ds.report",
)
"""Packages whose `__all__` is the public interface."""


def public_names() -> Iterator[tuple[str, str, str]]:
    """Package, name, and the path at which it is defined, for each public name."""
    for package in API_MODULES:
        for name in importlib.import_module(package).__all__:
            if name != "__version__":
                yield package, name, _path(package, name)


def _path(package: str, name: str) -> str:
    """Path at which a public name of a package is defined."""
    module = importlib.import_module(package)
    home = getattr(module, "_HOMES", {}).get(name)
    if home is None:
        return f"{_home(module, name)}.{name}"
    home = home if home.startswith("flopsfit_ds") else f"{package}.{home}"
    return _path(home, name) if hasattr(importlib.import_module(home), "__path__") else f"{home}.{name}"


def _home(module: Any, name: str) -> str:
    """Module that defines a name; a type alias or a constant is looked for among the modules of its package."""
    home = getattr(getattr(module, name), "__module__", None)
    if isinstance(home, str) and home.startswith("flopsfit_ds"):
        return home
    for source in vars(module).values():
        defined_in = getattr(source, "__module__", None)
        if isinstance(defined_in, str) and defined_in.startswith(module.__name__ + "."):
            candidate = importlib.import_module(defined_in)
            if name in vars(candidate):
                return defined_in
    raise LookupError(f"{module.__name__}.{name} has no home")


def api_page() -> str:
    """The API reference, as Markdown for mkdocstrings."""
    parts = [
        "# API\n\nThe names that the packages export. All else may change without notice.\n\n"
        "The sections of a spec are described field by field in [the spec](spec.md).\n"
    ]
    shown: set[str] = set()
    package = ""
    for package_of_name, name, path in public_names():
        if package_of_name != package:
            package = package_of_name
            parts.append(f"\n## {package}\n")
        if path in shown:
            parts.append(f"\n`{package}.{name}` is the same as above.\n")
            continue
        shown.add(path)
        parts.append(f"\n::: {path}\n")
        if package == "flopsfit_ds.spec" and name[0].isupper():
            parts.append("    options:\n      members: false\n")
    return "".join(parts)


def spec_page() -> str:
    """Every field of a spec with its type, default and meaning, from the JSON Schema."""
    from flopsfit_ds.spec import spec_json_schema

    schema = spec_json_schema()
    parts = [
        "# The spec\n\nEvery field of a `spec.yaml`, from the schema that `flopsfit-ds schema` prints. Quantities may "
        'be written as `1e18`, `"300B"` or `"80GiB"`. Unknown keys are errors.\n'
    ]
    for title, section in [("SweepSpec", schema), *schema["$defs"].items()]:
        if "properties" not in section:
            continue
        parts.append(f"\n## {title}\n\n{section.get('description', '')}\n\n| field | type | default | meaning |\n")
        parts.append("|---|---|---|---|\n")
        needed = section.get("required", [])
        for field, value in section["properties"].items():
            default = "required" if field in needed else f"`{_default(value)}`"
            meaning = " ".join(value.get("description", "").split()).replace("|", "\\|")
            parts.append(f"| `{field}` | {_type(value)} | {default} | {meaning} |\n")
    return "".join(parts)


def _default(value: dict[str, Any]) -> str:
    default = value.get("default", value.get("const"))
    if isinstance(default, dict):
        return "its own defaults"
    return str(default)


def _type(value: dict[str, Any]) -> str:
    """A type of the schema in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if options := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    if value.get("type") == "object":
        return "mapping"
    return str(value.get("type", "any"))


def on_files(files: Any, config: Any) -> Any:
    """Add the two pages to the site (called by MkDocs)."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "api.md", content=api_page()))
    files.append(File.generated(config, "spec.md", content=spec_page()))
    return files
