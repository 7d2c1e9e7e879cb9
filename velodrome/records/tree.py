"""A nested state as JSON and back, exactly; what is too big for JSON (tensors, arrays) is kept elsewhere by whoever calls.

None, bool, int, finite float, str and list are themselves, and so is a dict whose keys are strings. Everything else is an object of one key:
{"$tuple": […]}, {"$dict": [[key, value], …]}, {"$float": "nan"}, {"$bytes": "hex"}, {"$scalar": ["float32", "hex"]}, or what `keep` names.
"""

import collections
import math
from collections.abc import Callable
from typing import Any

import numpy as np

# keep(leaf, path) -> (kind, name) for a leaf that is stored outside the JSON, None for one that is not its business.
Keep = Callable[[Any, str], tuple[str, str] | None]
Fetch = Callable[[str, Any], Any]

DEPTH = 150  # half of what Python's recursion limit allows; also ends a structure that contains itself
_BITS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64), "complex": (64, 128)}
NUMPY = frozenset({"bool", *(f"{kind}{bits}" for kind, widths in _BITS.items() for bits in widths)})


def encode(tree: Any, keep: Keep, path: str = "", depth: int = 0) -> Any:
    """`tree` as a JSON-ready value; a ValueError names the path and the type of what cannot be kept exactly."""
    if depth > DEPTH:
        raise ValueError(f"the checkpoint is nested deeper than {DEPTH} at {path[:200]}…: flatten it, or break the cycle it contains.")
    kind = type(tree)
    if tree is None or kind is bool or kind is int or kind is str:
        return tree
    if kind is float:
        return tree if math.isfinite(tree) else {"$float": repr(tree)}
    if kind is list:
        return [encode(item, keep, f"{path}/{i}", depth + 1) for i, item in enumerate(tree)]
    if kind is tuple:
        return {"$tuple": [encode(item, keep, f"{path}/{i}", depth + 1) for i, item in enumerate(tree)]}
    if kind is dict or kind is collections.OrderedDict:
        return _encode_dict(tree, keep, path, depth)
    if kind is bytes:
        return {"$bytes": tree.hex()}
    if isinstance(tree, np.generic) and tree.dtype.name in NUMPY:
        little = np.asarray(tree).astype(tree.dtype.newbyteorder("<"))
        return {"$scalar": [tree.dtype.name, little.tobytes().hex()]}
    if kept := keep(tree, path):
        return {f"${kept[0]}": kept[1]}
    raise ValueError(
        f"the checkpoint holds a {kind.__module__}.{kind.__qualname__} at {path or 'its root'}, which cannot be stored exactly: "
        "write it as dict, list, tuple, number, string, bytes, tensor or NumPy array."
    )


def decode(node: Any, fetch: Fetch) -> Any:
    """The tree that `encode` was given (an OrderedDict as a dict); a ValueError if it did not make this JSON. Executes nothing."""
    kind = type(node)
    if kind is list:
        return [decode(item, fetch) for item in node]
    if kind is not dict:
        return node
    tag = next((key for key in node if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, fetch) for key, item in node.items()}
    if len(node) != 1:
        raise ValueError(f"an object with {tag} has other keys beside it")
    return _decode_tagged(tag[1:], node[tag], fetch)


def _encode_dict(tree: dict[Any, Any], keep: Keep, path: str, depth: int) -> Any:
    for key in tree:
        if not _plain_key(key):
            raise ValueError(
                f"the checkpoint has a key of type {type(key).__name__} at {path or 'its root'}: write a string or a whole number."
            )
    values = [encode(item, keep, f"{path}/{key}", depth + 1) for key, item in tree.items()]
    if all(type(key) is str and not key.startswith("$") for key in tree):
        return dict(zip(tree, values, strict=True))
    return {"$dict": [[encode(key, keep, path, depth + 1), value] for key, value in zip(tree, values, strict=True)]}


def _plain_key(key: Any) -> bool:
    return key is None or type(key) in (str, int, bool, float) or (type(key) is tuple and all(map(_plain_key, key)))


def _decode_tagged(kind: str, value: Any, fetch: Fetch) -> Any:
    if kind == "tuple":
        return tuple(decode(item, fetch) for item in value)
    if kind == "dict":
        return {decode(key, fetch): decode(item, fetch) for key, item in value}
    if kind == "float":
        return float(value)
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "scalar":
        name, digits = value
        if name not in NUMPY:
            raise ValueError(f"{name} is no NumPy number")
        little = np.frombuffer(bytes.fromhex(digits), np.dtype(name).newbyteorder("<"))
        return little.astype(name)[0]
    return fetch(kind, value)
