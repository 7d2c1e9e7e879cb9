"""What `velodrome look` opens: every form that a user may have, and one sentence for each that cannot be opened."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from velodrome.bench import subject as opening
from velodrome.bench.subject import called, held, parts_of
from velodrome.bench.window import walked
from velodrome.cli import main
from velodrome.data.stream import Batch

SICK = str(Path(__file__).parent.parent / "sick.py")
CODE = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

def pairs(n=3):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 4, generator=g), torch.randint(2, (6,), generator=g)) for _ in range(n)]

def plain():
    return network(), nn.CrossEntropyLoss(), pairs()

def trained():
    m = network()
    return m, nn.CrossEntropyLoss(), pairs(), torch.optim.Adam(m.parameters())

def as_dict():
    return {"model": network(), "loss": nn.CrossEntropyLoss(reduction="none"), "batches": pairs(1)[0]}

class Setup:
    def __init__(self):
        self.model, self.loss, self.batches = network(), nn.CrossEntropyLoss(), iter(pairs())

def needs(argument):
    return network()

def two():
    return network(), pairs()

def swapped():
    return nn.CrossEntropyLoss(), network(), pairs()

def other_parameters():
    return network(), nn.CrossEntropyLoss(), pairs(), torch.optim.Adam(network().parameters())

def empty():
    return network(), nn.CrossEntropyLoss(), []

def fails():
    raise RuntimeError("my own mistake")

def dropping():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), nn.CrossEntropyLoss(), pairs()

def frozen():
    return network().requires_grad_(False), nn.CrossEntropyLoss(), pairs()

def summed():
    return network(), nn.CrossEntropyLoss(reduction="sum"), pairs()

def diverged():
    m = network()
    with torch.no_grad():
        m[0].weight.fill_(float("nan"))
    return m, nn.CrossEntropyLoss(), pairs()

class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x).round()

def without_derivative():
    return Rounded(), lambda o, y: (o.sum(1) * 0 + y).float().detach(), pairs()

class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        if len(x) > 5 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return self.net(x)

def too_large():
    return Large(), nn.CrossEntropyLoss(), pairs()
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize(
    ("name", "batches", "trains"), [("plain", 3, False), ("trained", 3, True), ("as_dict", 1, False), ("Setup", 3, False)]
)
def test_a_function_may_return_a_tuple_a_dict_or_an_object(code, name, batches, trains):
    found = opening.of_function(f"{code}:{name}", 0, 8)
    assert len(found.batches) == batches
    assert (found.steps is not None) == trains
    assert found.batch_size == 6


def test_the_same_seed_opens_the_same_model_and_another_seed_another():
    a, b, c = (opening.of_function(f"{SICK}:healthy", seed, 1).model[0].weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_batches_of_every_kind_are_held_still_and_trained_on_in_their_order():
    x = torch.arange(12.0).reshape(6, 2)
    pairs = [(x[i : i + 2], x[i : i + 2]) for i in (0, 2, 4)]
    for kind in (list(pairs), tuple(pairs), iter(pairs), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), 2)):
        kept, stream = held(kind, 2, "it")
        assert [float(b.inputs[0, 0]) for b in kept] == [0.0, 4.0]
        assert [float(next(stream).inputs[0, 0]) for _ in range(3)] == [0.0, 4.0, 8.0]
    kept, stream = held((x, x), 8, "it")
    assert len(kept) == 1
    assert torch.equal(next(stream).inputs, next(stream).inputs)
    kept, stream = held([Batch(x, x)], 8, "it")
    assert len(kept) == 1
    _, stream = held(list(pairs), 2, "it")
    assert [float(next(stream).inputs[0, 0]) for _ in range(6)] == [0.0, 4.0, 8.0] * 2


def test_a_window_is_the_training_that_a_plain_loop_makes(code):
    found = opening.of_function(f"{code}:trained", 0, 8)
    window = walked(found, 5)
    space: dict = {}
    exec(CODE, space)
    model, loss, pairs, optimizer = space["trained"]()
    losses = []
    for x, y in (pairs * 2)[:6]:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        losses.append(float(value.detach()))
        if len(losses) <= 5:
            optimizer.step()
    assert window.losses == losses
    assert window.steps == list(range(6))
    assert len(window.reports) == 5
    assert window.gradients["0.weight"][-1] == pytest.approx(float(model[0].weight.grad.norm()))


def test_readers_are_asked_at_the_first_and_the_last_step_and_change_nothing(code):
    seen = walked(opening.of_function(f"{code}:trained", 0, 8), 40, {"t": lambda step: step.t}, points=5)
    assert [t for t, _ in seen.readings["t"]] == [0, 10, 20, 30, 40]
    assert seen.losses == walked(opening.of_function(f"{code}:trained", 0, 8), 40).losses


def test_weights_come_from_either_format_with_the_optimizer_where_it_is_kept(code, tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "w.pt")
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "step": 7}, tmp_path / "all.pt")
    for name, step, trains in (("w.safetensors", 0, False), ("w.pt", 0, False), ("all.pt", 7, True)):
        found = opening.of_function(f"{code}:trained", 0, 8, tmp_path / name)
        assert torch.equal(found.model[0].weight, model[0].weight)
        assert (found.first, found.steps is not None) == (step, trains)
    assert walked(opening.of_function(f"{code}:trained", 0, 8, tmp_path / "all.pt"), 3).steps == [7, 8, 9, 10]


def test_weights_that_do_not_fit_are_named(code, tmp_path):
    torch.save(
        {"0.weight": torch.zeros(8, 5), "0.bias": torch.zeros(8), "2.weight": torch.zeros(2, 8), "2.bias": torch.zeros(2)},
        tmp_path / "a.pt",
    )
    torch.save({"0.weight": torch.zeros(8, 4), "other": torch.zeros(8)}, tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"nonsense")
    for name, message in (
        ("a.pt", r"0.weight is \(8, 5\) in the file and \(8, 4\)"),
        ("b.pt", "it lacks 0.bias, and has other"),
        ("c.pt", "c.pt"),
    ):
        with pytest.raises(ValueError, match=message):
            opening.of_function(f"{code}:plain", 0, 8, tmp_path / name)


MISTAKES = {
    "arguments": (["{code}:needs"], "it needs argument: give them defaults"),
    "too few values": (["{code}:two"], "got 2 values"),
    "another order": (["{code}:swapped"], "the model must be a torch.nn.Module, got CrossEntropyLoss; the order is"),
    "another model's optimizer": (["{code}:other_parameters"], "holds none of the model's parameters"),
    "no batches": (["{code}:empty"], "there are no batches"),
    "a failure": (["{code}:fails"], "RuntimeError: my own mistake"),
    "no such name": (["{code}:plane"], "did you mean 'plain'?"),
    "no such file": (["nowhere.py:plain"], "no such file: nowhere.py"),
    "only a file": (["{code}"], "name the function in it"),
    "no such weights": (["w.pt", "--on", "{code}:plain"], "no such file: w.pt"),
    "no such run": (["runs/nowhere"], "is not a run"),
    "nothing like it": (["digts"], "did you mean 'digits'?"),
    "steps without an optimizer": (["{code}:plain", "--steps", "5"], "needs an optimizer"),
    "a loss that is random": (["{code}:dropping"], "the loss is not the same twice"),
    "no trained parameters": (["{code}:frozen"], "no parameters that need gradients"),
    "a sum": (["{code}:summed"], "the loss must be a mean"),
    "a diverged model": (["{code}:diverged"], "the run has diverged"),
    "a budget of nothing": (["{code}:plain", "--budget", "0"], "--budget must be"),
    "an unknown topic": (["{code}:plain", "--what", "edges"], "edges"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_written(what, code, capsys, tmp_path):
    words, message = MISTAKES[what]
    assert main(["look", *(w.format(code=code) for w in words)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert what == "an unknown topic" or said.err.count("\n") == 1
    assert not said.out
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_random_is_measured_where_it_is_asked_for(code, capsys):
    for asked in (["--fix-random"], ["--mode", "eval"]):
        assert main(["look", f"{code}:dropping", "--what", "updates", "--json", *asked]) == 0
        assert json.loads(capsys.readouterr().out)["name"].endswith("mine.py:dropping")


def test_parts_are_checked_by_name():
    with pytest.raises(ValueError, match="without loss"):
        parts_of({"model": nn.Linear(2, 2), "batches": []}, "it")
    with pytest.raises(ValueError, match=r"named FILE\.py:FUNCTION"):
        called("nothing", 0)
