"""Small trainings, each with one planted sickness, and healthy ones beside them: what `velodrome look` must find, and where it must be silent.

Each function returns (model, loss, batches, optimizer), so that `velodrome look tests/sick.py:NAME` opens it. All of them take a second or two.
"""

from itertools import count

import torch
import torch.nn.functional as F
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.gpt import Gpt
from velodrome.probes.statistics.opposing import OpposingSignals, half_squared_error

IN, CLASSES, BATCH = 16, 4, 64


def task(n=2048, seed=0, flip=0.0, scale=1.0):
    """Inputs, and the classes that a random network of two layers gives them; a share `flip` of the labels is drawn at random."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, IN, generator=g)
    first, second = torch.randn(IN, 32, generator=g) / IN**0.5, torch.randn(32, CLASSES, generator=g)
    y = (torch.tanh(2 * x @ first) @ second).argmax(1)
    wrong = torch.rand(n, generator=g) < flip
    return scale * x, torch.where(wrong, torch.randint(CLASSES, (n,), generator=g), y)


def stream(x, y, batch=BATCH, seed=1):
    """Random batches for ever."""
    g = torch.Generator().manual_seed(seed)
    for _ in count():
        chosen = torch.randint(len(x), (batch,), generator=g)
        yield x[chosen], y[chosen]


def mlp(width=32, act=nn.ReLU, depth=2):
    layers = [nn.Linear(IN, width), act()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), act()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def text(n=512, length=16, vocabulary=12, seed=0):
    """Sequences in which the next token is a function of the last two, nine times in ten."""
    g = torch.Generator().manual_seed(seed)
    rule = torch.randint(vocabulary, (vocabulary, vocabulary), generator=g)
    rows = [torch.randint(vocabulary, (n,), generator=g) for _ in range(2)]
    for _ in range(length - 1):
        noise = torch.rand(n, generator=g) < 0.1
        rows.append(torch.where(noise, torch.randint(vocabulary, (n,), generator=g), rule[rows[-2], rows[-1]]))
    whole = torch.stack(rows, 1)
    return whole[:, :length], whole[:, 1 : length + 1]


def gpt(**more):
    return Gpt(12, 16, 16, 2, 2, **more)


# Healthy ones.


def healthy():
    """AdamW at a rate that trains well."""
    model = mlp()
    return model, cross_entropy, stream(*task()), torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


def healthy_sgd():
    model = mlp(act=nn.Tanh)
    return model, cross_entropy, stream(*task()), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def healthy_gpt():
    model = gpt()
    return model, cross_entropy, stream(*text(), batch=32), torch.optim.AdamW(model.parameters(), lr=3e-3)


def healthy_norm():
    model = nn.Sequential(nn.Linear(IN, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES))
    return model, cross_entropy, stream(*task()), torch.optim.AdamW(model.parameters(), lr=3e-3)


HEALTHY = ("healthy", "healthy_sgd", "healthy_gpt", "healthy_norm")


# The learning rate.


def squares(outputs, targets):
    """Squared distance to the one-hot targets: unlike cross-entropy, its curvature does not vanish where all examples are right."""
    return (outputs - F.one_hot(targets, CLASSES)).square().sum(1)


def at_the_edge():
    """Gradient descent on all examples until the sharpness stands at 2 / lr."""
    model = mlp(act=nn.Tanh)
    x, y = task(128)
    return model, squares, (x, y), torch.optim.SGD(model.parameters(), lr=0.4)


def far_too_fast():
    """SGD that leaves at once."""
    model = mlp(act=nn.Tanh)
    return model, squares, stream(*task()), torch.optim.SGD(model.parameters(), lr=3.0)


def far_too_slow():
    model = mlp(act=nn.Tanh)
    return model, cross_entropy, stream(*task()), torch.optim.SGD(model.parameters(), lr=1e-4)


def jumping():
    """Adam at a rate that changes the weights by a third in a step."""
    model = mlp()
    return model, cross_entropy, stream(*task()), torch.optim.Adam(model.parameters(), lr=0.1)


# Numbers that grow.


def pushed(model, push, lr):
    """AdamW, after each step of which `push` changes some weights: a drift with a known rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    @torch.no_grad()
    def after(*_):
        push()

    optimizer.register_step_post_hook(after)
    return optimizer


GROWTH = 1.02  # of queries and keys each step, so the logits grow by its square


def attention_grows():
    model = gpt()
    weights = [p for n, p in model.named_parameters() if ".query." in n or ".key." in n]
    return model, cross_entropy, stream(*text(), batch=32), pushed(model, lambda: [w.mul_(GROWTH) for w in weights], 1e-4)


def log_z_drifts():
    """The biases of all classes rise by 0.2 a step, which no loss can see."""
    model = mlp()
    return model, cross_entropy, stream(*task()), pushed(model, lambda: model[-1].bias.add_(0.2), 1e-3)


def gradients_explode():
    """Weights drawn four times too large in ten layers."""
    model = mlp(act=nn.ReLU, depth=10)
    with torch.no_grad():
        for m in model:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=4 * (2 / m.in_features) ** 0.5)
    return model, cross_entropy, stream(*task()), torch.optim.SGD(model.parameters(), lr=1e-20)


def gradients_vanish():
    """Ten sigmoids behind each other."""
    model = mlp(act=nn.Sigmoid, depth=10)
    return model, cross_entropy, stream(*task()), torch.optim.SGD(model.parameters(), lr=0.1)


# What does not arrive.


def softmax_collapses():
    """Logits so large that float32 rounds every probability to 0 or 1."""
    model = mlp(width=256)
    x, y = task(64)
    fast = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        fast.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        fast.step()
    with torch.no_grad():
        model[-1].weight.mul_(300)
        model[-1].bias.mul_(300)
    return model, cross_entropy, (x, y), torch.optim.AdamW(model.parameters(), lr=1e-4)


def only_scaling():
    """All examples are right and there is no decay: what is left of the gradient makes the weights longer."""
    model = nn.Sequential(nn.Linear(IN, 128, bias=False), nn.ReLU(), nn.Linear(128, CLASSES, bias=False))
    x, y = task(32)
    fast = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        fast.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        fast.step()
    return model, cross_entropy, (x, y), torch.optim.SGD(model.parameters(), lr=0.1)


def units_are_dead():
    """Nine tenths of the first layer's units are below zero for every input."""
    model = mlp()
    with torch.no_grad():
        model[0].bias[:29] = -100
    return model, cross_entropy, stream(*task()), torch.optim.AdamW(model.parameters(), lr=1e-3)


def bf16_stands_still():
    model = mlp().bfloat16()
    x, y = task()
    return model, lambda o, t: cross_entropy(o.float(), t), stream(x.bfloat16(), y), torch.optim.AdamW(model.parameters(), lr=1e-5)


def eps_leads():
    model = mlp()
    return model, lambda o, y: 1e-6 * cross_entropy(o, y), stream(*task()), torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)


# The data.

BAD = 30  # the batch with the spike


def one_bad_batch():
    """Batch 30 has inputs that are fifty times too large and labels at random."""
    x, y = task()
    model = mlp()

    def batches():
        for i, (inputs, targets) in enumerate(stream(x, y)):
            yield (50 * inputs, targets.roll(1)) if i == BAD else (inputs, targets)

    return model, cross_entropy, batches(), torch.optim.AdamW(model.parameters(), lr=3e-3)


def batch_far_too_small():
    """Labels that are mostly noise, eight at a time."""
    model = mlp()
    return model, cross_entropy, stream(*task(flip=0.8), batch=8), torch.optim.SGD(model.parameters(), lr=1e-3)


def batch_far_too_large():
    """A linear task without noise, at its start: 512 examples say what 5 would."""
    x, _ = task()
    x = 0.1 * x + 1.0
    model = nn.Linear(IN, 1)
    y = x.sum(1, keepdim=True) + 10
    return model, lambda o, t: (o - t).square().sum(1), stream(x, y, 512), torch.optim.SGD(model.parameters(), lr=1e-5)


def random_labels():
    """Labels that have nothing to do with the inputs."""
    model = mlp()
    return model, cross_entropy, stream(*task(8192, flip=1.0)), torch.optim.AdamW(model.parameters(), lr=1e-3)


def groups_pull_apart():
    """Two groups of 13 examples with a large feature of opposite signs that says nothing; the rate is a little above what that feature allows."""
    toy = OpposingSignals(examples=512, offset=2.0)
    x, y, _, _ = toy.data()
    model = toy.model()
    return model, half_squared_error, (x, y), torch.optim.SGD(model.parameters(), lr=2.06 / toy.curvature)


# BatchNorm.


def statistics_lag():
    """Running statistics that hardly move: fine in training, useless in evaluation."""
    model = nn.Sequential(nn.Linear(IN, 32), nn.BatchNorm1d(32, momentum=1e-4), nn.ReLU(), nn.Linear(32, CLASSES))
    x, y = task()
    return model, cross_entropy, stream(5 * x + 5, y), torch.optim.AdamW(model.parameters(), lr=3e-3)


def norm_is_frozen():
    """A BatchNorm left in evaluation mode inside a model that trains."""
    model = nn.Sequential(
        nn.Linear(IN, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES)
    )
    model[1].eval()
    return model, cross_entropy, stream(*task()), torch.optim.AdamW(model.parameters(), lr=3e-3)
