"""From text to a recipe or a workload: one name for all spellings, files that do not disturb one another, and every mistake as one sentence."""

import importlib
import sys

import pytest
import torch
from torch import nn

from velodrome.bench.catalog import workload, workloads
from velodrome.recipes.adamw import adamw
from velodrome.recipes.load import load_module, module_digest
from velodrome.recipes.parse import parse, split

MINE = """
import torch
from velodrome.recipes.adamw import adamw

class My(torch.optim.SGD):
    def __init__(self, params, lr=0.1, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)

class Open(torch.optim.SGD):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

class Late(torch.optim.SGD):
    def __init__(self, params=None, lr=0.1):
        super().__init__(params, lr=lr)

class Model(torch.optim.SGD):
    def __init__(self, model, lr=0.1):
        super().__init__(model.parameters(), lr=lr)

class Leaving(torch.optim.SGD):
    def __init__(self, params):
        raise SystemExit(0)

def recipe(lr=0.1):
    return adamw(lr=lr)

def broken_recipe():
    return {}["missing"]

def broken_factory(model):
    return {}["missing"]

def keyword(params, *, lr):
    return torch.optim.SGD(params, lr=lr)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with the file; what is imported during the test is forgotten."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if name.startswith("velodrome_user_") or name in ("util", "local_package"):
            del sys.modules[name]


NAMES = [  # what is typed, what it is called
    ("adamw", "adamw"),
    ("adamw(lr=0.012)", "adamw"),
    ("adamw()", "adamw"),
    ("adamw(betas=[0.9, 0.99])", "adamw"),
    ("muon(lr=0.01)", "muon(lr=0.01)"),
    ("muon( lr = 1e-2 )", "muon(lr=0.01)"),
    ("muon(momentum=0.9,lr=1)", "muon(lr=1.0, momentum=0.9)"),
    ("mine.py:My", "mine.py:My"),
    ("./mine.py:My(lr=0.1)", "mine.py:My"),
    ("mine.py:My( momentum=1,lr=2e-1 )", "mine.py:My(lr=0.2, momentum=1.0)"),
    ("mine.py:My(lr=0.2, schedule='constant')", "mine.py:My(lr=0.2, schedule='constant')"),
    ("mine.py:My(schedule='linear')", "mine.py:My"),
    ("mine.py:recipe(lr=1)", "mine.py:recipe(lr=1.0)"),
    ("torch.optim:Adagrad(lr=0.02)", "torch.optim:Adagrad(lr=0.02)"),
]


@pytest.mark.parametrize(("text", "name"), NAMES)
def test_a_name_holds_the_options_that_differ_from_the_default_in_the_order_of_the_signature(here, text, name):
    recipe = parse(text)
    assert recipe.name == name
    again = parse(recipe.name)
    assert (again.name, again.settings, again.source) == (recipe.name, recipe.settings, recipe.source)


def test_options_reach_the_optimizer_and_the_settings(here):
    for text in ("mine.py:My(lr=0.3)", "mine.py:Open(lr=0.3)", "mine.py:Late(lr=0.3)", "mine.py:Model(lr=0.3)", "mine.py:keyword(lr=0.3)"):
        recipe = parse(text)
        assert recipe.optimizer(nn.Linear(2, 2)).param_groups[0]["lr"] == 0.3, text
        assert recipe.settings["lr"] == 0.3
    assert parse("mine.py:My").settings == {"lr": 0.1, "momentum": 0.0, "schedule": "linear"}
    assert parse("adamw(lr=0.5)").settings == {**adamw().settings, "lr": 0.5}


@pytest.mark.parametrize("name", ["opt (1).py", "a(b)c.py", "(x)/opt.py"])
def test_a_bracket_in_a_path_belongs_to_the_path(here, name):
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).write_text(MINE)
    for place in (name, f"./{name}", str(here / name)):
        assert split(f"{place}:My(lr=0.5)") == (f"{place}:My", {"lr": 0.5})
        assert split(f"{place}:My") == (f"{place}:My", {})
    assert parse(f"./{name}:My(lr=0.5)").optimizer(nn.Linear(2, 2)).param_groups[0]["lr"] == 0.5


def test_a_text_among_the_options_may_hold_anything():
    assert split("package.module:f(path='a.py:b(c=1)')") == ("package.module:f", {"path": "a.py:b(c=1)"})


@pytest.mark.parametrize(
    "text", ["adamw(lr=0.1)(lr=0.2)", "adamw(lr=0.1, lr=0.2)", "adamw(lr=0.1) + 1", "adamw(0.1)", "adamw(**{})", "adamw(lr="]
)
def test_what_is_no_single_call_is_refused(text):
    with pytest.raises(ValueError, match="options are written NAME"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine.py:broken_recipe", "'mine.py:broken_recipe' cannot be made: KeyError: 'missing'"),
        ("mine.py:Leaving", "'mine.py:Leaving' cannot be made: SystemExit: 0"),
        ("mine.py:My(lr='a')", "cannot be made: TypeError"),
        ("adamw(lr='a')", "'a'"),
        ("mine.py:keyword", "needs a value for lr"),
        ("mine.py:My(params=1)", "unknown option 'params'"),
        ("mine.py:Leavin", "did you mean 'Leaving'?"),
    ],
)
def test_what_cannot_be_made_is_one_sentence_with_its_cause(here, text, words):
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert words in str(refused.value)


def test_a_factory_that_fails_on_the_model_says_which_and_why(here):
    with pytest.raises(ValueError, match=r"'mine.py:broken_factory' cannot be made: KeyError: 'missing'"):
        parse("mine.py:broken_factory").optimizer(nn.Linear(2, 2))


def test_files_whose_paths_differ_in_punctuation_are_two_modules(here):
    for name in ("x-y", "x_y"):
        (here / f"{name}.py").write_text(f"own = {name!r}\n")
    assert [vars(load_module(f"{name}.py"))["own"] for name in ("x-y", "x_y")] == ["x-y", "x_y"]
    assert load_module("x-y.py") is load_module(f"./{here.name}/../x-y.py") is load_module(str(here / "x-y.py"))


def two_folders(here) -> list[str]:
    """Two folders with `mine.py`, `util.py` and a namespace package each."""
    for name in ("one", "two"):
        (here / name / "space").mkdir(parents=True)
        (here / name / "util.py").write_text(f"own = {name!r}\n")
        (here / name / "space" / "part.py").write_text(f"own = {name!r}\n")
        (here / name / "mine.py").write_text("import util\nfrom space import part\nown = [util.own, part.own]\n")
    return [str(here / name / "mine.py") for name in ("one", "two")]


def test_each_file_gets_the_modules_beside_it(here):
    one, two = two_folders(here)
    assert vars(load_module(one))["own"] == ["one", "one"]
    assert vars(load_module(two))["own"] == ["two", "two"]
    assert not {"util", "space", "space.part"} & set(sys.modules)


def forget() -> None:
    for name in [n for n in sys.modules if n.startswith("velodrome_user_")]:
        del sys.modules[name]


def test_a_digest_is_that_of_the_file_and_of_what_it_imports_whatever_else_is_parsed(here):
    one, two = two_folders(here)
    (here / "outer.py").write_text("x = 1\n")
    alone = module_digest(load_module("outer.py"))
    first = module_digest(load_module(one))
    load_module(two)
    (here / "one" / "unused.py").write_text("x = 1\n")
    load_module(str(here / "one" / "unused.py"))
    assert module_digest(load_module("outer.py")) == alone  # both folders lie under its own
    assert module_digest(load_module(one)) == first != module_digest(load_module(two))
    for changed in ("util.py", "space/part.py", "mine.py"):
        forget()
        before = module_digest(load_module(one))
        (here / "one" / changed).write_text((here / "one" / changed).read_text() + "# a longer file\n")
        assert module_digest(load_module(one)) != before, changed


def test_a_digest_does_not_depend_on_where_the_folder_lies(here):
    one, _ = two_folders(here)
    before = module_digest(load_module(one))
    (here / "one").rename(here / "three")
    assert module_digest(load_module(str(here / "three" / "mine.py"))) == before


def test_an_installed_module_is_known_by_its_source_and_an_edited_one_is_another(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    (here / "local_package.py").write_text(MINE)
    importlib.invalidate_caches()
    before = parse("local_package:My").source
    assert before == parse("local_package:My").source
    (here / "local_package.py").write_text(MINE + "# edited\n")
    assert parse("local_package:My").source != before
    assert parse("torch.optim:SGD(lr=0.1)").source != parse("torch.optim.sgd:SGD(lr=0.1)").source
    same = parse("torch.optim:SGD(lr=0.1)").source
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0" if name == "torch" else "1")
    assert parse("torch.optim:SGD(lr=0.1)").source != same


@pytest.mark.parametrize(
    ("text", "words"), [("import sys\nsys.exit(0)", "SystemExit: 0"), ("1 / 0", "ZeroDivisionError"), ("x = (", "SyntaxError")]
)
def test_a_file_that_does_not_load_is_a_sentence_and_leaves_nothing_behind(here, text, words):
    (here / "util.py").write_text("own = 1\n")
    (here / "bad.py").write_text(f"import util\n{text}\n")
    before, path = set(sys.modules), list(sys.path)
    with pytest.raises(ValueError, match=f"bad.py cannot be imported: {words}"):
        load_module("bad.py")
    assert not {n for n in set(sys.modules) - before if n == "util" or n.startswith("velodrome_user_")}
    assert sys.path == path


def test_a_folder_that_holds_this_package_keeps_it_imported(here, monkeypatch):
    """As a file at the top of this repository would: the package lies beside it."""
    from velodrome.recipes import load as room

    (here / "util.py").write_text("")
    spec = importlib.util.spec_from_file_location("util", here / "util.py")
    module = importlib.util.module_from_spec(spec)
    assert room._is_beside(module, here.resolve())
    assert not room._is_beside(room, room.file_of("/"))
    assert not room._is_beside(torch, room.file_of("/"))
    assert not room._is_beside(importlib, room.file_of("/"))


WORK = """
from dataclasses import replace
from tests.tiny import tiny

def longer():
    return tiny(200)

def broken():
    return {}["missing"]

def wrong():
    return replace(tiny(), steps=STEPS)
"""


def test_a_name_that_a_file_does_not_have_comes_with_the_nearest(here):
    (here / "work.py").write_text(WORK)
    with pytest.raises(ValueError, match=r"must be a Workload .* has no 'longr': did you mean 'longer'\?"):
        workload("work.py:longr")
    with pytest.raises(ValueError, match=r"'work.py:replace' cannot be made: TypeError"):
        workload("work.py:replace")
    with pytest.raises(ValueError, match=r"'work.py:broken' cannot be made: KeyError: 'missing'"):
        workload("work.py:broken")


def test_one_workload_is_taken_once_and_two_of_one_name_are_refused(here):
    (here / "work.py").write_text(WORK)
    assert [w.name for w in workloads(["digits", "./work.py:longer", "digits", "work.py:longer", str(here / "work.py:longer")])] == [
        "digits",
        "tiny",
    ]
    with pytest.raises(ValueError, match=r"'work.py:longer' and 'work.py:tiny' are different workloads, both named 'tiny': rename"):
        workloads(["work.py:longer", "work.py:tiny"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("steps=0", "needs steps to train for, got steps=0"),
        ("steps=120", "120 steps do not divide into 50 evaluations: write steps=100"),
        ("evaluations=10", "at least 50 evaluations"),
        ("evaluations=0", "at least 50 evaluations"),
        ("targets=(0.1, 0.5)", r"from easy to hard, got \(0.1, 0.5\): write targets=\(0.5, 0.1\)"),
    ],
)
def test_a_workload_without_sense_is_a_sentence(here, change, words):
    (here / "work.py").write_text(WORK.replace("steps=STEPS", change))
    with pytest.raises(ValueError, match=words):
        workload("work.py:wrong")
