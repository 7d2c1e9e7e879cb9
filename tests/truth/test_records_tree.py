"""The state of a run as JSON and back: everything that comes back is what went in, bit by bit and type by type."""

import collections
import json
import math
import random
import struct
from typing import Any

import numpy as np
import pytest

from velodrome.records.tree import DEPTH, decode, encode


def round_trip(tree: Any) -> Any:
    return decode(json.loads(json.dumps(encode(tree, lambda *_: None), allow_nan=False)), lambda kind, _: pytest.fail(kind))


def identical(a: Any, b: Any) -> bool:
    """Same types, same order, same bits; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, float) and type(a) is float:
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, np.generic):
        return a.tobytes() == b.tobytes()
    return bool(a == b)


def random_tree(rng: random.Random, depth: int = 0) -> Any:
    leaf = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.randrange(-(2**130), 2**130),
        lambda: rng.choice([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, rng.uniform(-1e300, 1e300), rng.random()]),
        lambda: rng.choice(["", "NaN", "$tuple", 'é\ud800\n"\\', "__metadata__", "a/b"]),
        lambda: rng.randbytes(rng.randrange(5)),
        lambda: np.dtype(rng.choice(["float32", "float16", "complex64", "int8", "uint64", "bool", "float64"])).type(rng.randrange(2)),
        lambda: np.float32(rng.choice([math.nan, -math.inf, 0.1])),
    ]
    if depth > 4 or rng.random() < 0.4:
        return rng.choice(leaf)()
    size = rng.randrange(4)
    parts = [random_tree(rng, depth + 1) for _ in range(size)]
    keys = [rng.choice([rng.choice("abc$"), "$tuple", rng.randrange(9), f"{i}", i, True, None, (1, "x"), 0.5]) for i in range(size)]
    return rng.choice([parts, tuple(parts), dict(zip(keys, parts, strict=True))])


def test_two_thousand_random_trees_come_back_identical():
    rng = random.Random(0)
    for _ in range(2000):
        tree = random_tree(rng)
        assert identical(round_trip(tree), tree), tree


def test_the_comparison_above_sees_differences_of_type_sign_and_order():
    pairs = [
        (1, 1.0),
        (0.0, -0.0),
        ((1,), [1]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (True, 1),
        (np.float32(1), np.float64(1)),
        ({1: 0}, {"1": 0}),
    ]
    assert not any(identical(a, b) for a, b in pairs)


def test_the_states_of_python_s_and_numpy_s_generators_go_on_where_they_were():
    python = random.Random(3)
    python.gauss(0, 1)
    other = random.Random(0)
    other.setstate(round_trip(python.getstate()))
    assert [other.gauss(0, 1) for _ in range(5)] == [python.gauss(0, 1) for _ in range(5)]
    first, second = np.random.default_rng(3), np.random.default_rng(4)
    first.normal(size=3)
    second.bit_generator.state = round_trip(first.bit_generator.state)
    assert second.normal() == first.normal()


def test_an_ordered_dict_comes_back_as_a_dict_in_its_order():
    assert round_trip(collections.OrderedDict([("b", 1), ("a", 2)])) == {"b": 1, "a": 2}


@pytest.mark.parametrize(
    ("leaf", "named"),
    [
        ({1, 2}, "builtins.set"),
        (collections.Counter("a"), "collections.Counter"),
        (collections.namedtuple("P", "x")(1), r"\.P "),
        (1j, "complex"),
        (len, "builtin_function"),
        (np.datetime64("2020-01-01"), "datetime64"),
        (object(), "object"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_path_and_type(leaf, named):
    with pytest.raises(ValueError, match=f"holds a .*{named}.*at /model/0/x"):
        round_trip({"model": [{"x": leaf}]})


def test_a_key_that_is_no_plain_value_and_a_tree_that_contains_itself_are_refused():
    with pytest.raises(ValueError, match="key of type frozenset at /a"):
        round_trip({"a": {frozenset(): 1}})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested deeper"):
        round_trip(endless)
    deep: Any = 1
    for _ in range(DEPTH):
        deep = (deep,)
    assert round_trip(deep) == deep


@pytest.mark.parametrize("node", [{"$tuple": [1], "x": 2}, {"$scalar": ["object", "00"]}, {"$bytes": "zz"}, {"$float": "one"}])
def test_json_that_encode_did_not_write_is_refused(node):
    with pytest.raises(ValueError):
        decode(node, lambda *_: None)
