"""From what a user writes to a Recipe: `muon`, `muon(lr=0.01)`, `./mine.py:MyOptimizer(lr=3e-4)`, `torch.optim:Adagrad(lr=0.01)`."""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from velodrome.discover import recipe_names
from velodrome.recipes.recipe import Recipe, warm_linear

SCHEDULES = {"linear": warm_linear, "constant": None}


def parse(text: str) -> Recipe:
    """The recipe that `text` names; ValueError with the nearest name for an unknown one, and with the accepted options for a wrong one.

    `NAME(option=value, …)` is a recipe of the package. `FILE.py:NAME(…)` and `package.module:NAME(…)` are a `torch.optim.Optimizer` class, a
    function of the model or of its parameters that returns an optimizer, or a function that returns a Recipe. An optimizer keeps its own
    defaults and gets the warm-up and linear decay of the recipes here as a factor of its learning rate; `schedule="constant"` leaves it alone.
    """
    target, options = split(text)
    if ":" not in target:
        return _own(target, options, text)
    place, attribute = target.rsplit(":", 1)
    if not place or not attribute:
        raise ValueError(f"an algorithm of your own is written FILE.py:NAME, got {text!r}: write ./my_optimizer.py:MyOptimizer.")
    module = load_module(place)
    made = getattr(module, attribute, None)
    if made is None:
        near = get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], 1)
        raise ValueError(f"{place} has no {attribute!r}" + (f": did you mean {near[0]!r}?" if near else "."))
    return _foreign(text, made, options, module_digest(module))


def split(text: str) -> tuple[str, dict[str, Any]]:
    """`name(a=1)` into the name and its options, which are Python literals."""
    target, bracket, rest = text.strip().partition("(")
    if not bracket:
        return target, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        assert all(k.arg for k in call.keywords)
        return target, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise ValueError(f"options are written NAME(option=value, …) with plain values, got {text!r}: write 'muon(lr=0.01)'.") from None


def _own(name: str, options: dict[str, Any], text: str) -> Recipe:
    if name not in recipe_names():
        near = get_close_matches(name.lower(), recipe_names(), 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(recipe_names())}."
        if name.endswith(".py"):
            hint = f"for a file of your own write {name}:NAME."
        raise ValueError(f"unknown algorithm {name!r}: {hint}")
    function = getattr(importlib.import_module(f"velodrome.recipes.{name}"), name)
    _accepts(function, options, text)
    recipe = function(**options)
    recipe.optimizer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))  # a value out of range is an error now, not in a worker
    return recipe


def _foreign(text: str, made: Any, options: dict[str, Any], source: str | None) -> Recipe:
    if not callable(made):
        raise ValueError(f"{text!r} must name an optimizer class or a function, got {type(made).__name__}.")
    parameters = inspect.signature(made).parameters
    required = [p for p in parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not required:
        _accepts(made, options, text)
        recipe = made(**options)
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{text!r} takes no parameters, so it must return a Recipe, got {type(recipe).__name__}.")
        return Recipe(text, recipe.optimizer, recipe.schedule, recipe.settings, source)
    shape = options.pop("schedule", "linear") if "schedule" not in parameters else "linear"
    if shape not in SCHEDULES:
        raise ValueError(f"schedule must be 'linear' or 'constant', got {shape!r}.")
    _accepts(made, options, text)
    missing = [p.name for p in required[1:] if p.name not in options]
    if missing:
        raise ValueError(f"{text!r} needs a value for {', '.join(missing)}: write {text.split('(')[0]}({missing[0]}=…).")
    wants_model = required[0].name in ("model", "module", "network")
    build = partial(_build, made, wants_model, text, options)
    if not wants_model:  # a value that it refuses is an error now, not in the middle of a race
        try:
            build(nn.Linear(2, 2))
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{text!r} cannot be made: {type(error).__name__}: {error}.") from error
    return Recipe(text, build, SCHEDULES[shape], {**options, "schedule": shape}, source)


def _build(made: Callable[..., Any], wants_model: bool, text: str, options: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    optimizer = made(model if wants_model else model.parameters(), **options)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"{text!r} must make a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    return optimizer


def _accepts(function: Callable[..., Any], options: dict[str, Any], text: str) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in options:
        if name not in parameters:
            near = get_close_matches(name, parameters, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its options are {', '.join(parameters)}."
            raise ValueError(f"unknown option {name!r} in {text!r}: {hint}")


def load_module(place: str) -> ModuleType:
    """The module of a user: a file (executed once a process, with its own folder importable) or an installed package."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"cannot import {place!r} ({error}): write a file as ./{place}.py:NAME.") from None
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"no such file: {place} (looked at {path}).")
    name = "velodrome_user_" + re.sub(r"\W", "_", str(path))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # so that it may import the files beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def module_digest(module: ModuleType) -> str:
    """SHA-256 of the user's file and of the modules it imported from its own folder; for an installed package, its name and version."""
    file = Path(module.__file__ or "")
    if not module.__name__.startswith("velodrome_user_"):
        return f"{module.__name__} {getattr(sys.modules.get(module.__name__.split('.')[0]), '__version__', '')}"
    files = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
    beside = {Path(f) for f in files if isinstance(f, str)}
    used = sorted(p for p in beside | {file} if p.suffix == ".py" and p.is_relative_to(file.parent) and "site-packages" not in p.parts)
    return sha256(b"".join(p.read_bytes() for p in used if p == file or not _ours(p))).hexdigest()


def _ours(path: Path) -> bool:
    return path.is_relative_to(Path(__file__).parent.parent)
