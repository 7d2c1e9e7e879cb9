"""The tangent kernel is that of the definition for every layer, leaves no trace, and a sketch of it knows its error."""

import pytest
import torch
from torch import nn

from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error
from velodrome.models.gpt import Gpt
from velodrome.models.mlp import Mlp
from velodrome.probes.functions.jacobian import Tangent
from velodrome.probes.functions.kernel import spectrum
from velodrome.probes.functions.ntk import Kernel, ntk, ntk_sketch
from velodrome.probes.objective import Objective


class Tied(nn.Module):
    """One weight as a layer twice, and once by hand; a norm; an embedding that is also the head."""

    def __init__(self, by_hand):
        super().__init__()
        self.table, self.turn, self.norm, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 5)
        self.head.weight, self.by_hand = self.table.weight, by_hand

    def forward(self, x):
        h = self.norm(self.turn(torch.tanh(self.turn(self.table(x).mean(1)))))
        return self.head(h + h @ self.turn.weight if self.by_hand else h)


def tokens(n=7):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 5, (n, 3), generator=draw), torch.randint(0, 5, (n,), generator=draw)


def images(n=7):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 6, 6, generator=draw, dtype=torch.float64), torch.randint(0, 3, (n,), generator=draw)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
    ).eval()


def in_sequence():
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Linear(18, 5))


CASES = {
    "mlp": (lambda: Mlp(36, 9, 2, 3), images),
    "conv": (convolutional, images),
    "twice": (lambda: Tied(False), tokens),
    "by hand": (lambda: Tied(True), tokens),
    "sequence": (in_sequence, tokens),
    "gpt": (lambda: Gpt(5, 3, 8, 1, 2), tokens),
}


def setting(name, **options):
    torch.manual_seed(0)
    make, data = CASES[name]
    model = make().double()
    x, y = data()
    if name == "gpt":
        y = x
    return Objective(model, cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])], **options)


def jacobian(objective):
    """(n, c, P) by one backward pass for each number, with plain autograd."""
    found = []
    for batch in objective.batches:
        outputs = objective.model(batch.inputs).flatten(1)
        for row in outputs:
            for value in row:
                grads = torch.autograd.grad(value, list(objective.params.values()), retain_graph=True, materialize_grads=True)
                found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found).view(objective.examples, -1, found[0].numel())


def state(model):
    return (
        [x.detach().clone() for x in (*model.parameters(), *model.buffers())],
        [p.grad for p in model.parameters()],
        torch.get_rng_state(),
    )


@pytest.mark.parametrize("memory", [2**30, 2000], ids=["whole", "blocks"])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_product_of_the_jacobian_with_itself(name, memory):
    objective = setting(name)
    J = jacobian(objective)
    truth = {
        "all": J.flatten(0, 1) @ J.flatten(0, 1).T,
        "sum": J.sum(1) @ J.sum(1).T,
        "trace": torch.einsum("ikp,jkp->ij", J, J),
    }
    for outputs, matrix in truth.items():
        found = ntk(objective, outputs, memory=memory).matrix
        assert (found - matrix).norm() <= 1e-12 * matrix.norm()


@pytest.mark.parametrize("name", CASES)
def test_a_look_at_the_kernel_leaves_the_model_bit_for_bit_as_it_was(name):
    objective = setting(name)
    next(objective.model.parameters()).grad = torch.ones_like(next(objective.model.parameters()))
    tensors, grads, random = state(objective.model)
    ntk(objective), ntk_sketch(objective, draws=2), Tangent(objective) @ torch.ones(Tangent(objective).n, dtype=torch.float64)
    after, now, later = state(objective.model)
    assert all(torch.equal(a, b) for a, b in zip(tensors, after, strict=True))
    assert all(a is b for a, b in zip(grads, now, strict=True))
    assert torch.equal(random, later)


@pytest.mark.parametrize("name", CASES)
def test_products_with_the_kernel_are_those_of_the_matrix(name):
    objective = setting(name)
    truth = ntk(objective).matrix
    assert (Tangent(objective).dense() - truth).norm() <= 1e-12 * truth.norm()


def test_a_part_of_the_parameters_gives_a_part_of_the_kernel():
    whole = ntk(setting("conv")).matrix
    parts = [ntk(setting("conv", params=[p])).matrix for p in ("0.*", "1.*", "4.*", "6.weight", "6.bias")]
    assert torch.allclose(sum(parts), whole, rtol=1e-12)


def test_a_linear_models_kernel_is_that_of_its_inputs():
    x = torch.randn(9, 4, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    assert torch.allclose(ntk(Objective(model, squared_error, (x, x[:, :1]))).matrix, x @ x.T, rtol=1e-13)


def test_where_examples_share_statistics_there_is_no_kernel():
    x, y = images()
    with pytest.raises(ValueError, match="1 mixes the examples"):
        ntk(Objective(convolutional().double(), cross_entropy, (x, y), mode="train"))
    dropping = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Dropout(0.5)).double()
    with pytest.raises(ValueError, match="2 drops out"):
        ntk(Objective(dropping, cross_entropy, (x, y), mode="train", fix_random=True))
    with pytest.raises(ValueError, match="outputs must be 'all', 'sum' or 'trace'"):
        ntk(setting("mlp"), "mean")


def test_a_sketchs_errors_are_those_of_its_entries_and_its_intervals_cover_the_truth():
    """200 sketches of 40 draws: intervals of trace, norm and effective rank at 95 % cover in 90 to 98 %; errors of entries are right within a tenth."""
    objective = setting("mlp")
    J = jacobian(objective).flatten(0, 1)
    truth = J @ J.T
    exact = spectrum(Kernel(truth, "all", 7, 3))
    draws, covered = 40, torch.zeros(3)
    for seed in range(200):
        u = torch.randn(draws, J.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ J.T
        products = u[:, :, None] * u[:, None, :]
        error = ((products.square().mean(0) - products.mean(0).square()) / (draws - 1)).sqrt()
        found = spectrum(Kernel(products.mean(0), "all", 7, 3, error, draws, u, "parameters"))
        for k, name in enumerate(("trace", "norm", "effective_rank")):
            one = getattr(found, name)
            covered[k] += one.low <= getattr(exact, name).value <= one.high
    assert all(0.90 <= share <= 0.98 for share in (covered / 200).tolist()), covered
    made = ntk_sketch(objective, draws=300)
    assert ((made.matrix - truth) / made.error).square().mean() < 2
    assert abs(float((made.error / ((truth.diagonal()[:, None] * truth.diagonal() + truth.square()) / 300).sqrt()).mean()) - 1) < 0.1


@pytest.mark.parametrize(("outputs", "over"), [("sum", "parameters"), ("trace", "parameters"), ("trace", "outputs")])
def test_a_sketch_of_the_sum_or_trace_is_unbiased(outputs, over):
    objective = setting("conv")
    truth, found = ntk(objective, outputs).matrix, ntk_sketch(objective, outputs, draws=150, over=over)
    assert ((found.matrix - truth).abs() < 5 * found.error).all()
    assert found.error.max() < 0.3 * truth.max()


def test_random_signs_of_outputs_tell_the_trace_kernel_better_than_random_parameters_and_their_intervals_cover():
    """200 sketches of 40 draws, made from the dense Jacobian; the norm and the effective rank over outputs."""
    objective = setting("mlp")
    J = jacobian(objective)
    exact = spectrum(Kernel(torch.einsum("ikp,jkp->ij", J, J), "trace", 7, 3))
    covered, generator = torch.zeros(3), torch.Generator().manual_seed(0)
    for _ in range(200):
        signs = 2.0 * torch.randint(0, 2, (40, 3), generator=generator).double() - 1
        rows = torch.einsum("rk,ikp->rip", signs, J)
        each = rows @ rows.transpose(1, 2)
        found = spectrum(Kernel(each.mean(0), "trace", 7, 3, each.std(0) / 40**0.5, 40, each, "outputs"))
        for k, name in enumerate(("trace", "norm", "effective_rank")):
            one = getattr(found, name)
            covered[k] += one.low <= getattr(exact, name).value <= one.high
    assert all(0.90 <= share <= 0.98 for share in (covered / 200).tolist()), covered
    made = [ntk_sketch(objective, "trace", draws=30, over=over).error.mean() for over in ("outputs", "parameters")]
    assert made[0] < made[1] / 2
    with pytest.raises(ValueError, match="'outputs' for the 'trace' kernel"):
        ntk_sketch(objective, "all", over="outputs")
