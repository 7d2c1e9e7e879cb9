"""Losses against NumPy transcriptions in float64 and against scikit-learn's definitions where they exist."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error

from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.losses.squared_error import squared_error


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(high, *shape, seed=1):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_of_classes_equals_scikit_learns_log_loss():
    logits, targets = draw(50, 7), classes(7, 50)
    ours = cross_entropy(logits, targets)
    assert ours.shape == (50,)
    assert ours.mean().item() == pytest.approx(log_loss(targets, logits.softmax(-1), labels=range(7)), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_of_sequences_is_the_mean_over_the_positions_that_count(smoothing):
    logits, targets = draw(4, 6, 9), classes(9, 4, 6)
    targets[0, 2:] = -100
    targets[2, 0] = -100
    ours = cross_entropy(logits, targets, label_smoothing=smoothing)
    logs = log_softmax(logits.numpy(), axis=-1)
    for b in range(4):
        terms = []
        for i in range(6):
            if targets[b, i] != -100:
                q = np.full(9, smoothing / 9)
                q[targets[b, i]] += 1 - smoothing
                terms.append(-(q * logs[b, i]).sum())
        assert ours[b].item() == pytest.approx(np.mean(terms), rel=1e-12)


def test_an_ignored_example_has_no_loss_no_gradient_and_no_accuracy():
    logits, targets = draw(3, 5, 4).requires_grad_(), classes(4, 3, 5)
    targets[1] = -100
    loss = cross_entropy(logits, targets)
    assert loss[1] == 0
    loss.mean().backward()
    assert torch.all(logits.grad[1] == 0)
    assert logits.grad[0].abs().sum() > 0
    assert accuracy(logits, targets).isnan().tolist() == [False, True, False]


def test_an_ignored_class_number_may_be_a_real_one():
    logits, targets = draw(3, 5, 4), classes(4, 3, 5)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 5)
    truth = [plain[b][targets[b] != 2].mean().item() for b in range(3)]
    assert cross_entropy(logits, targets, ignore=2).tolist() == pytest.approx(truth, rel=1e-12)


def test_cross_entropy_has_the_gradient_softmax_minus_target():
    logits, targets = draw(5, 6).requires_grad_(), classes(6, 5)
    cross_entropy(logits, targets).sum().backward()
    truth = logits.detach().softmax(-1) - torch.nn.functional.one_hot(targets, 6)
    assert torch.allclose(logits.grad, truth, rtol=0, atol=1e-14)


def test_squared_error_equals_scikit_learns():
    outputs, targets = draw(8, 3), draw(8, 3, seed=1)
    truth = [mean_squared_error(targets[b], outputs[b]) for b in range(8)]
    assert squared_error(outputs, targets).tolist() == pytest.approx(truth, rel=1e-12)
    assert squared_error(outputs[:, 0], targets[:, 0]).tolist() == pytest.approx(((outputs - targets)[:, 0] ** 2).tolist(), rel=1e-15)
    assert squared_error(draw(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.float64)).shape == (2,)


def test_accuracy_equals_scikit_learns():
    logits, targets = draw(40, 3), classes(3, 40)
    assert accuracy(logits, targets).mean().item() == pytest.approx(accuracy_score(targets, logits.argmax(-1)), rel=1e-6)
    logits, targets = draw(4, 10, 3), classes(3, 4, 10)
    targets[0, :7] = -100
    ours = accuracy(logits, targets)
    for b in range(4):
        kept = targets[b] != -100
        assert ours[b].item() == pytest.approx(accuracy_score(targets[b][kept], logits[b].argmax(-1)[kept]), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cross_entropy(draw(4, 3), classes(3, 5)), r"do not fit, got \(4, 3\) and \(5,\)"),
        (lambda: cross_entropy(draw(4, 3, 2), classes(2, 4, 2)), "do not fit"),
        (lambda: cross_entropy(draw(4), classes(2, 4)), "do not fit"),
        (lambda: cross_entropy(draw(4, 3), classes(3, 4).int()), "targets.long()"),
        (lambda: cross_entropy(draw(4, 3), draw(4)), "got torch.float64"),
        (lambda: cross_entropy(classes(3, 4, 3), classes(3, 4)), "floating-point scores"),
        (lambda: cross_entropy(draw(4, 3), classes(3, 4), label_smoothing=1.5), "label_smoothing must be"),
        (lambda: cross_entropy(draw(4, 3), classes(3, 4), label_smoothing=float("nan")), "label_smoothing must be"),
        (lambda: accuracy(draw(4, 3), classes(3, 4, 1)), "do not fit"),
        (lambda: squared_error(draw(4, 1), draw(4)), "share one shape"),
        (lambda: squared_error(draw(4), classes(3, 4)), "targets.float()"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
