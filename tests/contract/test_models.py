"""Every model, found by discovery: seeded, a pure function of its inputs, one graph for torch.compile, and with a head that optimizers can find."""

import copy
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import velodrome.models

TOKENS = ("Gpt", "Rnn", "Factors")
EXAMPLES = {  # class name: arguments, input shape, classes or numbers of an output; inputs are whole numbers for TOKENS
    "Mlp": (dict(inputs=12, width=8, depth=2, classes=3), (4, 12), 3),
    "ResNet": (dict(depth=8, width=4, classes=5), (4, 3, 8, 8), 5),
    "Gpt": (dict(vocabulary=11, length=6, width=8, depth=2, heads=2), (4, 6), 11),
    "Cnn": (dict(size=8, channels=3, width=4, hidden=8, classes=5), (4, 3, 8, 8), 5),
    "Rnn": (dict(vocabulary=11, width=8, depth=2), (4, 6), 11),
    "Autoencoder": (dict(inputs=12, widths=(8, 3)), (4, 12), 12),
    "Factors": (dict(rows=9, columns=7, width=4), (4, 2), None),
    "Vit": (dict(size=8, patch=4, channels=3, width=8, depth=2, heads=2, classes=5), (4, 3, 8, 8), 5),
}


def found() -> dict[str, type[nn.Module]]:
    """The models: classes with a `seed`, in the files that do not begin with an underscore."""
    classes = {}
    for info in pkgutil.iter_modules(velodrome.models.__path__, "velodrome.models."):
        for name, value in vars(importlib.import_module(info.name)).items():
            if isinstance(value, type) and value.__module__ == info.name and "seed" in inspect.signature(value).parameters:
                classes[name] = value
    return classes


MODELS = found()
each = pytest.mark.parametrize("name", MODELS)


def build(name, seed=0):
    return MODELS[name](**EXAMPLES[name][0], seed=seed)


def inputs(name):
    _, shape, classes = EXAMPLES[name]
    generator = torch.Generator().manual_seed(3)
    return torch.randint(classes or 7, shape, generator=generator) if name in TOKENS else torch.randn(shape, generator=generator)


def last(model):
    """The last layer's weight; a model without one gives its first table."""
    return (model.head if hasattr(model, "head") else model.row).weight


def test_every_file_has_a_model_and_every_model_an_example():
    files = {info.name for info in pkgutil.iter_modules(velodrome.models.__path__) if not info.name.startswith("_")}
    assert {cls.__module__.rsplit(".", 1)[1] for cls in MODELS.values()} == files
    assert set(EXAMPLES) == set(MODELS)


@each
def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = build(name, 7), build(name, 7), build(name, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(last(one), last(other))


@each
def test_without_a_seed_the_global_generator_decides(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        free = build(name, None)
        torch.manual_seed(7)
        again = build(name, None)
        later = build(name, None)
    assert torch.equal(last(free), last(again))
    assert not torch.equal(last(free), last(later))


@each
def test_a_forward_pass_gives_logits_and_writes_nothing_but_batch_statistics(name):
    model, x = build(name), inputs(name)
    kept, state = x.clone(), copy.deepcopy(model.state_dict())
    logits = model(x)
    classes = EXAMPLES[name][2]
    assert logits.shape == (x.shape if name in ("Gpt", "Rnn") else x.shape[:1]) + ((classes,) if classes else ())
    assert torch.equal(x, kept)
    norms = {f"{n}." for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, state[n])}
    assert all(any(n.startswith(norm) for norm in norms) for n in changed)
    assert bool(changed) == bool(norms)


@each
def test_every_parameter_of_a_model_gets_a_gradient(name):
    model = build(name)
    model(inputs(name)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if not n.endswith("key.bias"))


@each
def test_a_model_keeps_the_type_of_its_weights(name):
    x = inputs(name)
    assert build(name).double()(x.double() if x.is_floating_point() else x).dtype == torch.float64


@each
def test_a_model_runs_under_bf16_autocast_close_to_float32(name):
    model, x = build(name), inputs(name)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    assert (mixed - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.equal(mixed, exact) == (name == "Factors")  # which has no product of matrices


@each
def test_a_model_is_one_graph_for_torch_compile(name):
    model, x = build(name), inputs(name)
    torch._dynamo.reset()
    whole = name != "Rnn"  # dynamo does not enter torch's recurrent kernels: there it is two graphs around them
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=whole)(x), model(x), atol=1e-6)


@each
def test_a_model_resumes_from_its_state(name):
    model, twin = build(name, 1).eval(), build(name, 2).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(inputs(name)), twin(inputs(name)))


@each
def test_parameters_can_be_grouped_by_kind(name):
    """Whatever is neither embedding, norm, bias nor head is a matrix or a kernel of hidden layers, so it has at least two dimensions."""
    model = build(name)
    if name == "Factors":  # all of it is embeddings and one number
        return
    assert isinstance(model.head, nn.Linear)
    special = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d)
    owned = {id(p) for m in model.modules() if isinstance(m, special) or m is model.head for p in m.parameters()}
    rest = [(n, p) for n, p in model.named_parameters() if id(p) not in owned and "bias" not in n.rsplit(".", 1)[-1]]
    assert rest
    assert all(p.ndim >= 2 for _, p in rest)


@each
def test_a_size_that_is_not_a_whole_number_is_one_clear_sentence(name):
    sizes = EXAMPLES[name][0]
    for key in sizes:
        for bad in (0, -1, 2.0, True, None):
            wrong = (4, bad) if key == "widths" else bad
            with pytest.raises(ValueError, match=rf"^{key}(\[1\])? must be"):
                MODELS[name](**{**sizes, key: wrong})
