"""Workloads of somebody's own: what the constructors make of tensors, parquet, images and text; and one sentence for every mistake, before training."""

import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from velodrome.bench.catalog import workload
from velodrome.bench.own import from_images, from_table, from_tensors, from_text
from velodrome.bench.protocol import evaluate, seed_everything
from velodrome.bench.rehearsal import rehearse
from velodrome.cli import main
from velodrome.data import table
from velodrome.layers.logits import Logits
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0.5).long()
linear = partial(nn.Linear, 4, 2)

TASK = """
import torch
from torch import nn
from velodrome.bench.own import from_images, from_table, from_tensors, from_text
from velodrome.bench.workload import Data, Workload
from velodrome.data.streams import Shuffled, batches
from velodrome.losses.cross_entropy import cross_entropy

x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()

class Dict(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return {"logits": self.linear(x)}

def build():
    return nn.Linear(4, 2)

def task():
    return from_tensors("mine", build, (x, y), batch_size=20, steps=50, targets=(0.5,))

def load():
    return Data(lambda seed: Shuffled(x, y, 20, seed), batches(x, y, 100), "mine")

def plain():
    named = dict(name="plain", summary="", metric_name="loss", cost="", seconds=1.0, targets=(0.5,), steps=50, batch_size=20)
    return Workload(load=load, model=build, loss=cross_entropy, metric=cross_entropy, **named)
"""


def rows(w):
    """All training rows of a workload's first stream, and all it is validated on."""
    data = w.load()
    return data.stream(0).inputs, torch.cat([b.inputs for b in data.valid])


def test_a_share_of_each_class_is_held_out_always_the_same_and_never_trained_on():
    w = from_tensors("mine", linear, (X, Y), holdout=0.2)
    train, valid = rows(w)
    assert len(train) + len(valid) == 200
    held = torch.cat([b.targets for b in w.load().valid])
    assert held.sum() == round(0.2 * int(Y.sum()))
    assert (1 - held).sum() == round(0.2 * int((1 - Y).sum()))
    assert not {r.numpy().tobytes() for r in train} & {r.numpy().tobytes() for r in valid}
    again = from_tensors("mine", linear, (X, Y), holdout=0.2)
    assert torch.equal(rows(again)[1], valid)
    assert again.load().digest == w.load().digest != from_tensors("mine", linear, (X + 1, Y), holdout=0.2).load().digest


def test_whole_numbers_are_classes_and_others_are_regressed_on():
    w = from_tensors("mine", linear, (X, Y.int()))
    assert (w.loss, w.metric) == (cross_entropy, cross_entropy)
    assert w.load().valid[0].targets.dtype == torch.int64
    assert "accuracy" in w.accuracies
    w = from_tensors("mine", partial(nn.Linear, 4, 1), (X.double().numpy(), X[:, :1].double().numpy()))
    assert (w.loss, dict(w.accuracies)) == (squared_error, {})
    assert rows(w)[0].dtype == torch.float32
    assert rehearse(w).digest == w.load().digest


def test_who_writes_into_its_data_spoils_nobody_elses():
    x = X.numpy().copy()
    w = from_tensors("mine", linear, (x, Y))
    before = rows(w)[0].clone()
    rows(w)[0].zero_()
    assert torch.equal(rows(w)[0], before)


def test_pairs_may_come_from_a_dataset_of_torch():
    a = from_tensors("mine", linear, TensorDataset(X, Y), (X, Y))
    b = from_tensors("mine", linear, (X, Y), (X, Y))
    assert a.load().digest == b.load().digest


def parquet(path, **columns):
    pa = pytest.importorskip("pyarrow")
    path.parent.mkdir(exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
    return path


NUMBERS = {"a": np.arange(40.0), "b": np.full(40, 7), "name": [f"n{i}" for i in range(40)], "kind": ["cat", "dog"] * 20}


def test_a_folder_of_parquet_becomes_columns_of_mean_0_and_variance_1_and_classes_by_name(tmp_path):
    for i in range(2):
        parquet(tmp_path / f"part-{i}.parquet", **NUMBERS)
    w = from_table("mine", tmp_path, "kind", nn.Linear, batch_size=8)
    train, valid = rows(w)
    assert (w.model().in_features, w.model().out_features) == (2, 2)  # a and b; names are no numbers
    assert len(train) == 72
    assert torch.allclose(train.mean(0), torch.zeros(2), atol=1e-6)
    assert train[:, 0].std() == pytest.approx(1, abs=1e-5)
    assert not valid[:, 1].any()  # a column that never changes
    found = table.load(tmp_path, target="kind")
    assert found.classes == ("cat", "dog")
    assert torch.equal(found.targets, torch.tensor([0, 1] * 40))
    assert torch.equal(found.inputs[:, 0], torch.arange(40.0).repeat(2))


def test_a_number_to_predict_is_scaled_so_that_answering_the_mean_costs_1(tmp_path):
    parquet(tmp_path / "train.parquet", a=NUMBERS["a"], y=NUMBERS["a"] ** 2)
    parquet(tmp_path / "test.parquet", a=NUMBERS["a"][:5] + 0.5, y=NUMBERS["a"][:5])
    w = from_table("mine", tmp_path, "y", nn.Linear, batch_size=8)
    stream, data = w.load().stream(0), w.load()
    assert len(stream.targets) == 40
    assert data.valid[0].targets.shape == (5, 1)  # the file named test is what is held out
    assert stream.targets.square().mean() == pytest.approx(39 / 40, rel=1e-4)


def test_a_folder_of_text_becomes_windows_of_bytes_or_characters(tmp_path):
    for i, line in enumerate(("wie geht es dir, ", "gut, und schön! ")):
        (tmp_path / f"{i}.txt").write_text(line * 60, encoding="utf-8")
    w = from_text("mine", tmp_path, length=16, batch_size=4, steps=50)
    batch, valid = next(w.load().stream(0)), w.load().valid[0]
    assert batch.inputs.shape == batch.targets.shape == (4, 16)
    assert "nats per byte" in w.metric_name
    seed_everything(0)
    assert evaluate(w.model(), {"x": w.metric}, [valid])["x"] == pytest.approx(math.log(256), abs=0.1)
    characters = from_text("mine", tmp_path, lambda n: nn.Embedding(n, n), tokens="characters", length=16, batch_size=4, steps=50)
    assert characters.model().num_embeddings == len(set("wie geht es dir, gut, und schön! \n")) + 1
    assert rehearse(characters).digest != rehearse(w).digest


def test_a_folder_of_images_becomes_scaled_channels(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for kind, colour in (("red", (200, 0, 9)), ("green", (0, 200, 9))):
        (tmp_path / kind).mkdir()
        for i in range(20):
            image.new("RGB", (8, 6), tuple(min(c + i, 255) for c in colour)).save(tmp_path / kind / f"{i}.png")
    flat = lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, classes))  # noqa: E731
    w = from_images("mine", tmp_path, flat, batch_size=8)
    rehearse(w)
    batch = next(w.load().stream(0))
    assert batch.inputs.shape == (8, 3, 6, 8)
    assert batch.inputs.abs().max() < 3
    assert w.model()[1].out_features == 2


class Answer:
    def __init__(self, logits, past=None):
        self.logits, self.past = logits, past


class Headed(nn.Module):
    """Called as Hugging Face's models are."""

    def __init__(self, answer=Answer):
        super().__init__()
        self.table, self.answer, self.asked = nn.Embedding(11, 11), answer, None

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        assert labels is None
        self.asked = attention_mask
        return self.answer(self.table(input_ids))


def test_logits_hands_on_the_logits_and_a_mask_of_what_is_no_padding():
    ids, headed = torch.tensor([[1, 2, 0], [3, 0, 0]]), Headed()
    assert torch.equal(Logits(headed)(ids), headed.table(ids))
    assert headed.asked is None
    Logits(headed, pad=0)(ids)
    assert headed.asked.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert list(dict(Logits(headed).named_parameters())) == ["model.table.weight"]
    with pytest.raises(ValueError, match=r"Headed answers with tuple, which has no tensor `.logits`: take a model with a head"):
        Logits(Headed(lambda x: (x,)))(ids)


def test_a_model_of_transformers_trains_and_resumes_as_any_other(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is optional and not installed here")
    monkeypatch.chdir(tmp_path)
    config = dict(n_positions=16, n_embd=16, n_layer=1, n_head=2, use_cache=False, bos_token_id=0, eos_token_id=0)
    small = lambda size: Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=size, **config)))  # noqa: E731
    (tmp_path / "book.txt").write_text("to be or not to be, that is the question. " * 60)
    w = from_text("hf", "book.txt", small, tokens="characters", length=16, batch_size=4, steps=50, targets=(2.0,))
    assert len(rehearse(w).valid[0].inputs) > 0
    seed_everything(0)
    assert evaluate(w.model(), {"x": w.metric}, w.load().valid)["x"] == pytest.approx(math.log(w.model().model.config.vocab_size), abs=0.2)


def refused(tmp_path, monkeypatch, capsys, source, name="task"):
    """What `velodrome train` says to a task, as one sentence; nothing may have been trained or written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    code = main(["train", "adamw", "--on", f"./mine.py:{name}", "-q"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "runs").exists()
    return err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "build, (x, y)",
            "Dict, (x, y)",
            "its loss gets from the model dict, no tensor: return the tensor of outputs, or wrap the model in",
        ),
        ("(x[:, 0] > 0)", "(10 * x[:, 0]).abs()", "labels must be class numbers from 0 to 1, because the model has 2 outputs, got"),
        ("y = (x[:, 0] > 0).long()", "y = (x[:, 0] > 0).long() - 1", "labels must be class numbers from 0 to 1, .* got -1 in its"),
        ("batch_size=20", "batch_size=500", "a batch of 500 is more than its 180 training examples: write batch_size=90"),
        ("(x, y), b", "(x, y[:7]), b", r"train needs as many targets as inputs, one at least, got shapes \(200, 4\) and \(7,\)"),
        ("(x, y), b", "x, b", r"train must be \(inputs, targets\) or a torch Dataset, got Tensor"),
        ("(x, y), b", "(x / 0, y), b", "train's inputs have 800 numbers that are not finite"),
        ("(x, y), b", "(['a'], y), b", "train's inputs must be a tensor or an array of numbers, got list"),
        (
            "nn.Linear(4, 2)\n\ndef task",
            "nn.Linear(5, 2)\n\ndef task",
            r"its model cannot be run on float32 inputs of shape \(2, 4\): RuntimeError",
        ),
        ("nn.Linear(4, 2)\n\ndef task", "nn.ReLU()\n\ndef task", "its model, ReLU, has no parameter to train"),
        (
            "nn.Linear(4, 2)\n\ndef task",
            "3\n\ndef task",
            "model must be a function that returns a torch.nn.Module, got one that returns int",
        ),
        (
            "targets=(0.5,)",
            "metric=lambda o, t: (o.argmax(1) == t).float().mean()",
            r"its metric must give one value per example, .* got \(\): do not",
        ),
        (
            "targets=(0.5,)",
            "loss=nn.CrossEntropyLoss()",
            r"its loss must give one value per example, a tensor of shape \(2,\) here, got \(\)",
        ),
        ("targets=(0.5,)", "metric=lambda o, t: 1.0", "its metric must give one value per example, .* got float"),
        (
            "targets=(0.5,)",
            "accuracies={'best': lambda o, t: o[9]}",
            "accuracies.*best.* cannot be computed from outputs of shape .*IndexError",
        ),
        ("targets=(0.5,)", "loss=lambda o, t: o.detach().sum(1)", "its loss does not depend on the model's parameters"),
        ("targets=(0.5,)", "loops=3", "cannot be made: TypeError: .*unexpected keyword argument 'loops'"),
    ],
)
def test_a_mistake_in_a_task_is_one_sentence_before_anything_is_trained(tmp_path, monkeypatch, capsys, old, new, words):
    assert old in TASK
    err = refused(tmp_path, monkeypatch, capsys, TASK.replace(old, new))
    with pytest.raises(ValueError, match=words):
        raise ValueError(err)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batches(x, y, 100)", "[]", "'plain' has nothing to validate on"),
        ("Shuffled(x, y, 20, seed)", "iter([])", "'plain': its stream has no first batch"),
        ("Shuffled(x, y, 20, seed)", "iter([(x, y)])", r"its stream yields tuple, and needs Batch\(inputs, targets\)"),
        ("Shuffled(x, y, 20, seed)", "Shuffled(x, y, 500, seed)", "batch_size must be at most the 200 examples there are, got 500"),
        ("return Data(", "return (", "'plain': load must return a Data, got tuple"),
        ("def load():\n", "def load():\n    1 / 0\n", "'plain': its data cannot be loaded: ZeroDivisionError"),
        ("Shuffled(x, y, 20, seed)", "Shuffled(x, y + 1, 20, seed)", "class numbers from 0 to 1, .* got 2 in its training data"),
        ("batches(x, y, 100)", "batches(x, y + 1, 100)", "class numbers from 0 to 1, .* got 2 in its validation data"),
    ],
)
def test_a_workload_written_out_is_rehearsed_too(tmp_path, monkeypatch, capsys, old, new, words):
    assert old in TASK
    err = refused(tmp_path, monkeypatch, capsys, TASK.replace(old, new), "plain")
    with pytest.raises(ValueError, match=words):
        raise ValueError(err)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("from_text('t', 'empty')", "empty holds neither SPLIT-.*parquet nor .txt files"),
        ("from_text('t', 'nowhere')", "There is no file or folder nowhere"),
        ("from_text('t', 'short')", "The text is too short"),
        ("from_text('t', 'rows', column='texts')", r"has no column 'texts' of strings \(it has a, b, name, kind\): write column='name'"),
        ("from_images('t', 'empty', build)", "empty"),
        ("from_table('t', 'empty', 'kind', nn.Linear)", "empty holds no .parquet file"),
        ("from_table('t', 'nowhere', 'kind', nn.Linear)", "nowhere does not exist: give a .parquet file or a folder"),
        ("from_table('t', 'rows', 'kin', nn.Linear)", r"rows.x.parquet has no column 'kin': it has a \(double\), b \(int64\)"),
        ("from_table('t', 'rows', 'kind', nn.Linear, columns=['a', 'c'])", "has no column 'c'"),
        ("from_table('t', 'rows', 'kind', nn.Linear, columns=['name'])", "column 'name' holds string, not numbers"),
        ("from_table('t', 'rows', 'name', nn.Linear)", "column 'name' has 40 different values in 40 rows: classes need"),
        ("from_table('t', 'holes', 'y', nn.Linear)", "column 'a' has 1 nulls: fill them"),
        ("from_table('t', 'rows', 'kind', nn.Linear, batch_size=64)", "a batch of 64 is more than its 36 training examples"),
    ],
)
def test_a_mistake_in_a_folder_is_one_sentence_that_names_it(tmp_path, monkeypatch, capsys, call, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("too little")
    parquet(tmp_path / "rows" / "x.parquet", **NUMBERS)
    parquet(tmp_path / "holes" / "x.parquet", a=[1.0, None, 2.0], y=[1.0, 2.0, 3.0])
    err = refused(tmp_path, monkeypatch, capsys, TASK + f"\ndef other():\n    return {call}\n", "other")
    with pytest.raises(ValueError, match=words):
        raise ValueError(err)


def test_a_rehearsal_changes_neither_random_numbers_nor_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK.replace("build, (x, y)", "lambda: nn.Sequential(nn.Dropout(), nn.Linear(4, 2)), (x, y)"))
    w = workload("./mine.py:task")
    seed_everything(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    w.load()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_a_model_may_answer_with_more_than_a_tensor_if_its_loss_and_metric_take_it():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    both = lambda outputs, targets: cross_entropy(outputs[0], targets)  # noqa: E731
    assert rehearse(from_tensors("mine", partial(Two, 4, 2), (X, Y), loss=both, metric=both)).digest


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
    """A function: what `velodrome targets` prints and its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(source, *words):
        (tmp_path / "mine.py").write_text(source, encoding="utf-8")
        code = main(["targets", "./mine.py:task", "-q", *words])
        return code, *capsys.readouterr()

    return run


def test_targets_are_proposed_that_nine_in_ten_seeds_reach_and_their_lines_can_be_pasted(measured, tmp_path):
    source = TASK.replace("targets=(0.5,))", ")")
    code, out, _ = measured(source, "--seeds", "5", "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert found["targets"] == sorted(found["targets"], reverse=True)
    assert len(found["hard"]) == found["reached"][-1] >= 5
    assert all(s <= 0.65 * 50 for s in found["hard"])
    assert found["spread"] > 0
    code, out, _ = measured(source, "--seeds", "5")
    assert "seeds 1000 to 1004, which no race uses" in out
    (tmp_path / "pasted.py").write_text(
        TASK.replace("targets=(0.5,))", out.partition("Write into the workload:")[2] + ")"), encoding="utf-8"
    )
    w = workload("./pasted.py:task")
    assert list(w.targets) == found["targets"]  # of the same runs, read again
    assert w.spread == found["spread"]
    assert w.cost == f"{w.seconds:g} s for 50 steps on one core"


def test_a_stopped_measurement_goes_on_and_repeats_no_finished_run(measured, tmp_path):
    measured(TASK, "--seeds", "2", "--json")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "targets").glob("*/result.json")}
    assert len(stamps) == 2
    measured(TASK, "--seeds", "3", "--json")
    now = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "targets").glob("*/result.json")}
    assert len(now) == 3
    assert stamps.items() <= now.items()


def test_a_task_that_is_not_learned_gets_no_target_and_says_so(measured):
    code, out, err = measured(TASK.replace("targets=(0.5,)", "metric=lambda o, t: o.sum(1) * float('nan')"), "--seeds", "2")
    assert code == 3
    assert "no target can be set" in err
    assert "targets=" not in out


def test_every_example_of_the_page_is_short():
    page = (Path(__file__).parents[2] / "docs" / "bring_your_own.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```(?:python|console).*?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 10
    assert max(len(example.splitlines()) for example in examples) <= 30


def test_targets_that_cannot_be_told_apart_are_said_to_be_poor(measured):
    code, out, err = measured(TASK.replace("targets=(0.5,)", "metric=lambda o, t: 0 * o.sum(1) + 1.5"), "--seeds", "2")
    assert code == 0
    assert "targets=(1.5, 1.5, 1.5)," in out
    assert "gains too little between 35% and 65% of the budget" in err
    assert "a model that is not trained yet reaches a target" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["targets"], "name a workload to measure"),
        (["targets", "digits", "--seeds", "0"], "seeds and threads must be at least 1"),
        (["targets", "digit"], "did you mean 'digits'"),
        (["targets", "digits", "--out", "file"], "--out must be a folder, got the file file"),
    ],
)
def test_a_mistake_in_the_command_is_told(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(words) == 2
    assert said in capsys.readouterr().err
