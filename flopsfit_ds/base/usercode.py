"""Code of the user's own, named by a spec as `package.module:Class`: imported only where the user allowed it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import io
import pickle
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import spawn
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from flopsfit_ds.base.errors import SpecError

_LIBRARY = sysconfig.get_path("stdlib")
_WRAPPERS = (property, staticmethod, classmethod, functools.cached_property, MethodType)
_WRAPPED = ("fget", "fset", "__func__", "__self__", "__wrapped__", "func", "args", "keywords")


def check_allowed(class_path: str, allowed: Sequence[str], field: str = "model.class_path") -> None:
    """See that a class, or a function, lies in a package the user allowed; `field` names it in the spec.

    Raises:
        SpecError: It does not.
    """
    module = class_path.partition(":")[0]
    if not _lies_in(module, allowed):
        raise SpecError(
            f"{field}: {class_path} is code that the spec wants to import; allow it with "
            f"--allow-import {module.partition('.')[0]}"
        )


def import_class(class_path: str, allowed: Sequence[str] = ()) -> type[Any]:
    """The class of that path: a model that the package defines itself, whatever else it may have imported.

    Args:
        class_path: `module:Class`.
        allowed: Packages that the user allowed; without them, the one that the path begins with.

    Raises:
        SpecError: The module or the class does not exist, the module fails, or it is no model of that package.
    """
    module_name, _, class_name = class_path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise SpecError(f"model.class_path: {class_path}: {error}; is its folder on PYTHONPATH?") from None
    except Exception as error:  # whatever the user's module does while it is imported
        raise SpecError(f"model.class_path: {module_name} fails on import: {type(error).__name__}: {error}") from error
    if found is None:
        raise SpecError(f"model.class_path: {module_name} has no {class_name}")
    if not inspect.isclass(found):
        raise SpecError(f"model.class_path: {class_path} is not a class")
    packages = tuple(allowed) or (module_name.partition(".")[0],)
    home = str(found.__module__)
    if not _lies_in(home, packages):
        raise SpecError(
            f"model.class_path: {class_path} is defined in {home}, not in {', '.join(packages)}; name it where it is "
            f"defined, {home}:{found.__name__}, and allow that with --allow-import {home.partition('.')[0]}"
        )
    torch = sys.modules.get("torch")  # a class of a module that has not loaded it is no model of it
    if torch is None or not issubclass(found, torch.nn.Module):
        raise SpecError(f"model.class_path: {class_path} is no torch.nn.Module; name a model class")
    return found


def _lies_in(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


CANNOT_BE_PICKLED = (pickle.PicklingError, TypeError, AttributeError, ValueError, NotImplementedError, RecursionError)
"""What pickling raises of objects that it cannot take."""
_DEPTH = 6  # objects within objects that are looked through for the one that cannot be sent


class _Nowhere(io.RawIOBase):
    """Takes everything, and keeps nothing: a dataset may be large."""

    def write(self, data: Any) -> int:
        return len(data)


def pickled(value: Any) -> bytes:
    """A value as another process of the same run is sent it: by name what that can import, the rest by value.

    Classes and functions of a notebook, or inside a function, are no part of a module that a worker could import.

    Raises:
        Exception: One of `CANNOT_BE_PICKLED`.
    """
    if main_script() is not None:
        with contextlib.suppress(*CANNOT_BE_PICKLED):
            return pickle.dumps(value)
    import cloudpickle

    return cloudpickle.dumps(value)


def what_stays(name: str, value: Any) -> str | None:
    """Of a value that cannot be sent to another process the part that cannot, in words; None where all can."""
    if _can_go(value):
        return None
    for _ in range(_DEPTH):
        inner = next(((each, part) for each, part in _parts(name, value) if not _can_go(part)), None)
        if inner is None:
            break
        name, value = inner
    kind = type(value)
    return f"{name} is a {kind.__module__}.{kind.__qualname__}".replace(" a builtins.", " a ").replace("__main__.", "")


def main_script() -> str | None:
    """The user's script, which workers import; None in a notebook, of `python -m` and of `python -c`."""
    return spawn.get_preparation_data("worker").get("init_main_from_path")


def _can_go(value: Any) -> bool:
    import cloudpickle

    with contextlib.suppress(*CANNOT_BE_PICKLED):
        if main_script() is not None:
            pickle.Pickler(_Nowhere()).dump(value)
            return True
    try:
        cloudpickle.Pickler(_Nowhere()).dump(value)
    except CANNOT_BE_PICKLED:
        return False
    return True


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds: attributes, entries, what a function encloses or names."""
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"{name}[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, FunctionType):
        inside = inspect.getclosurevars(value)
        named_by_it = {**inside.globals, **inside.nonlocals}
        yield from ((f"{key}, which {name} names,", part) for key, part in named_by_it.items())
    elif isinstance(value, type):
        yield from ((f"{name}.{key}", part) for key, part in vars(value).items() if not key.startswith("__"))
    else:
        yield from ((f"{name}.{key}", part) for key, part in getattr(value, "__dict__", {}).items())
        yield f"the class of {name}", type(value)


def named(code: Any) -> Any:
    """A class or function; a partial call with the name of what it calls."""
    if not isinstance(code, functools.partial):
        return code
    return functools.update_wrapper(functools.partial(code.func, *code.args, **code.keywords), named(code.func))


def source_hash(*codes: Any) -> str:
    """Hash of all that is the user's own in classes, functions and callable objects, and in what these refer to.

    Sources are followed from name to name through the user's files: base classes, and whatever functions and methods
    name. Of a library's code the name counts, of values the content. What a function imports itself, or finds with
    `getattr`, is not seen.
    """
    digest = hashlib.sha256()
    seen: dict[int, Any] = {}  # the objects too: an id is given again once its object is gone
    waiting = list(codes)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        words, referred = _describe(value)
        digest.update("\0".join((*words, "\1")).encode())
        if referred:
            seen[id(value)] = value
            waiting += referred
    return digest.hexdigest()[:16]


def _describe(value: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
    """What a value says of itself, and the values it refers to."""
    if isinstance(value, Mapping):
        return (), [item for pair in value.items() for item in pair]
    if isinstance(value, (tuple, list)):
        return (), value
    if isinstance(value, (set, frozenset)):
        return (), sorted(value, key=repr)
    if inspect.isfunction(value):
        return _name_and_source(value), _referred_by_function(value) if _is_users(value) else ()
    if inspect.isclass(value):
        return _name_and_source(value), (*value.__bases__, *_members(value)) if _is_users(value) else ()
    if isinstance(value, (*_WRAPPERS, functools.partial)) or hasattr(value, "__wrapped__"):
        parts = (getattr(value, name, None) for name in _WRAPPED)
        return (str(type(value).__name__),), [part for part in parts if part is not None]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):  # its representation would show but a part
        content = value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        return (str(value.dtype), str(value.shape), hashlib.sha256(content).hexdigest()), ()
    if hasattr(value, "tobytes"):
        return (type(value).__name__, hashlib.sha256(value.tobytes()).hexdigest()), ()
    if isinstance(getattr(value, "__qualname__", None), str) or inspect.ismodule(value):  # a library's
        return (str(getattr(value, "__module__", "")), getattr(value, "__qualname__", value.__name__)), ()
    if hasattr(value, "__dict__"):  # of a library's objects only the callable ones, as a loss: a log has no content
        return (), (type(value), vars(value)) if callable(value) or _is_users(type(value)) else (type(value),)
    return (type(value).__name__, "" if " at 0x" in repr(value) else repr(value)), ()


def _name_and_source(code: Any) -> tuple[str, ...]:
    name = f"{code.__module__}.{code.__qualname__}"
    if not _is_users(code):
        return (name,)
    try:
        return (inspect.getsource(code),)
    except (OSError, TypeError):
        pass
    if isinstance(code, FunctionType):  # without its source, as in an interpreter: by what it does
        return name, code.__code__.co_code.hex(), repr([each for each in code.__code__.co_consts if _is_plain(each)])
    return (name,)


def _is_plain(constant: Any) -> bool:
    return not isinstance(constant, CodeType)


def _is_users(code: Any) -> bool:
    """Whether a class or function is the user's: of no library, and not of this package."""
    return _is_users_module(code.__module__ or "")


def _is_users_module(name: str) -> bool:
    if name == "__main__":
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    return not (file.startswith(_LIBRARY) or {"site-packages", "dist-packages"} & set(Path(file).parts))


def _members(code: type) -> list[Any]:
    """Functions, properties and values of a class, without what Python itself notes there."""
    return [
        member for name, member in vars(code).items() if not name.startswith("__") or isinstance(member, FunctionType)
    ]


def _referred_by_function(code: FunctionType) -> list[Any]:
    """What a function names: globals, what it takes from the user's modules, enclosed variables, defaults."""
    names = _names(code.__code__)
    found: list[Any] = [code.__defaults__, code.__kwdefaults__]
    for cell in code.__closure__ or ():
        with contextlib.suppress(ValueError):  # still empty
            found.append(cell.cell_contents)
    spaces, modules = [code.__globals__], set()
    while spaces:
        space = spaces.pop()
        for name in names:
            value = space.get(name)
            if not inspect.ismodule(value):
                found += [value] if name in space else []
            elif value not in modules and _is_users_module(value.__name__):
                modules.add(value)
                spaces.append(vars(value))
    return found


def _names(code: CodeType) -> list[str]:
    """Global names and attributes in a function's code and in that of the functions inside it."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *inner})
