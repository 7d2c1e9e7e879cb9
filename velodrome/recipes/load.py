"""Code of the user's own: loaded from a file or a package, each file apart from the others, and hashed with what it brought along."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import sysconfig
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from types import ModuleType

BESIDE = "__velodrome_beside__"  # where a user's module keeps the modules that it imported from its own folder


def load_module(place: str) -> ModuleType:
    """The module of a user: a file (executed once a process, with its own folder importable) or an installed package.

    What a file imports from its own folder belongs to it alone: another file's `import util` is another `util`. Such imports must therefore
    stand at the top of the file, not inside its functions.
    """
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"cannot import {place!r} ({error}): write a file as ./{place}.py:NAME.") from None
        except (Exception, SystemExit) as error:
            raise ValueError(f"{place} cannot be imported: {cause(error)}.") from error
    path = file_of(place)
    if not path.is_file():
        raise ValueError(f"no such file: {place} (looked at {path}).")
    name = "velodrome_user_" + sha256(str(path).encode()).hexdigest()[:16]
    return sys.modules[name] if name in sys.modules else _execute(name, path, place)


def file_of(place: str) -> Path:
    """The file that a user means."""
    return Path(place).expanduser().resolve()


def _execute(name: str, path: Path, place: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    importlib.invalidate_caches()
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # so that it may import the files beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{place} cannot be imported: {cause(error)}.") from error
    finally:
        with contextlib.suppress(ValueError):  # it may have changed the path itself
            sys.path.remove(str(path.parent))
        beside = {n: m for n, m in list(sys.modules.items()) if n not in before and n != name and _is_beside(m, path.parent)}
        for n in beside:
            del sys.modules[n]
    module.__dict__[BESIDE] = list(beside.values())
    return module


def _is_beside(module: ModuleType, folder: Path) -> bool:
    """Whether a module lies in the user's folder; site-packages, Python's library and this package may lie there too and are not the user's."""
    known = getattr(module, "__dict__", {})  # getattr(module, "__path__") may run anybody's __getattr__
    place = known.get("__file__") or next(iter(known.get("__path__") or ()), None)  # a folder without __init__.py has no file
    if not isinstance(place, str):
        return False
    path = Path(place).resolve()
    elsewhere = (Path(__file__).resolve().parent.parent, Path(sysconfig.get_paths()["stdlib"]).resolve())
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_relative_to(folder) and not installed and not any(path.is_relative_to(p) for p in elsewhere)


def module_digest(module: ModuleType) -> str:
    """SHA-256 of the user's file and of the modules it imported from its own folder, or of an installed module's source, name and version."""
    digest = sha256()
    parts: list[tuple[str, Path | None]]
    if BESIDE in vars(module):
        file = Path(str(module.__file__))
        beside = {Path(m.__file__).resolve() for m in vars(module)[BESIDE] if getattr(m, "__file__", None)}
        parts = [(os.path.relpath(path, file.parent), path) for path in {file, *beside}]
    else:
        top = module.__name__.split(".")[0]
        try:
            version = importlib.metadata.version(top)
        except importlib.metadata.PackageNotFoundError:
            version = str(getattr(sys.modules.get(top), "__version__", ""))
        source = getattr(module, "__file__", None) and inspect.getsourcefile(module)
        parts = [(f"{module.__name__} {version}", Path(source) if source else None)]
    for name, path in sorted(parts, key=lambda part: part[0]):
        content = path.read_bytes() if path else b""
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def nearest(module: ModuleType, name: str) -> str:
    """The end of a sentence that says a module has no such name."""
    near = get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], 1)
    return f": did you mean {near[0]!r}?" if near else "."


def cause(error: BaseException) -> str:
    """An exception in one line without a full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
