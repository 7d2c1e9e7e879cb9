"""What one epoch holds: every example once, every window on its grid, every target the next token."""

import numpy as np
import pytest
import torch

from velodrome.data.stream import Batch
from velodrome.data.streams import Generated, Shuffled, Windows, batches, windows
from velodrome.data.transforms import normalise


@pytest.mark.parametrize("size", [1, 4, 5, 20])
def test_every_example_is_seen_once_per_epoch_with_its_own_target(size):
    inputs, targets = torch.arange(20.0), torch.arange(20) * 3
    stream = Shuffled(inputs, targets, size, 0)
    orders = []
    for _ in range(3):
        epoch = [next(stream) for _ in range(20 // size)]
        seen = torch.cat([batch.inputs for batch in epoch])
        assert torch.equal(seen.sort().values, inputs)
        assert torch.equal(torch.cat([batch.targets for batch in epoch]).float(), seen * 3)
        orders.append(seen.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_the_last_examples_of_an_epoch_are_dropped_or_make_a_smaller_batch():
    data = torch.arange(11)
    dropping, keeping = Shuffled(data, data, 4, 0), Shuffled(data, data, 4, 0, drop_last=False)
    assert [next(dropping).examples for _ in range(4)] == [4, 4, 4, 4]
    assert dropping.state_dict()["epoch"] == 1
    sizes = [next(keeping) for _ in range(3)]
    assert [batch.examples for batch in sizes] == [4, 4, 3]
    assert sorted(torch.cat([batch.inputs for batch in sizes]).tolist()) == list(range(11))


def test_shuffles_are_uniform_over_positions():
    data = torch.arange(6)
    first = [next(Shuffled(data, data, 6, seed)).inputs.tolist() for seed in range(1200)]
    counts = np.zeros((6, 6))
    for order in first:
        counts[range(6), order] += 1
    chi2 = ((counts - 200) ** 2 / 200).sum()  # 25 degrees of freedom; each row and column sums to 1200
    assert chi2 < 25 + 4 * 50**0.5


def test_a_transform_sees_a_new_generator_at_every_step_and_in_every_epoch():
    data = torch.zeros(8, 1)
    stream = Shuffled(data, data, 4, 0, transform=lambda x, generator: x + torch.rand(1, generator=generator))
    assert len({next(stream).inputs[0].item() for _ in range(12)}) == 12


@pytest.mark.parametrize(("n", "length", "size"), [(200, 8, 3), (33, 8, 4), (100, 7, 1), (41, 40, 1), (9, 1, 2)])
def test_windows_of_an_epoch_lie_end_to_end_from_one_phase_and_never_overlap(n, length, size):
    tokens = torch.arange(n)
    stream = Windows(tokens, length, size, 0)
    phases = set()
    for epoch in range(20):
        drawn = []
        while not drawn or stream.position < stream._batches(epoch):
            batch = next(stream)
            assert batch.inputs.shape == batch.targets.shape == (size, length)
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64
            assert batch.inputs.is_contiguous()
            assert batch.targets.is_contiguous()
            assert batch.tokens == size * length
            assert torch.equal(batch.targets, batch.inputs + 1)
            drawn += batch.inputs[:, 0].tolist()
        assert stream.epoch == epoch
        assert len(set(drawn)) == len(drawn)
        phase = min(drawn) % length
        assert {start % length for start in drawn} == {phase}
        fit = (n - 1 - phase) // length
        assert fit - size < len(drawn) <= fit
        phases.add(phase)
    assert len(phases) > 1 or n - size * length == 1 or length == 1


def test_every_target_but_the_first_few_is_reached_over_the_epochs():
    stream = Windows(torch.arange(64), 8, 2, 0)
    reached = set()
    for _ in range(200):
        reached |= set(next(stream).targets.flatten().tolist())
    assert reached == set(range(1, 64))


def test_uint8_tokens_arrive_as_int64_without_a_change_of_value():
    batch = next(Windows(torch.arange(256).byte(), 255, 1, 0))
    assert batch.inputs.tolist() == [list(range(255))]


@pytest.mark.parametrize(("n", "length", "size"), [(8, 8, 1), (16, 8, 2), (0, 1, 1)])
def test_a_text_shorter_than_one_batch_is_refused(n, length, size):
    with pytest.raises(ValueError, match="too short"):
        Windows(torch.arange(n), length, size, 0)
    with pytest.raises(ValueError, match="too short"):
        windows(torch.arange(length), length, size)


def test_a_generated_stream_is_its_function_of_seed_and_step():
    stream = Generated(lambda seed, t: Batch(torch.tensor([[seed, t]]), torch.zeros(1)), 7, 1, digest="")
    assert [next(stream).inputs.tolist() for _ in range(3)] == [[[7, 0]], [[7, 1]], [[7, 2]]]


def test_evaluation_batches_cover_everything_in_order():
    data = torch.arange(10)
    found = batches(data, data * 2, 4)
    assert [batch.inputs.tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [batch.targets.tolist() for batch in found] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]


def test_a_limit_spreads_evaluation_evenly_over_the_data():
    data = torch.arange(1000)
    rows = torch.cat([batch.inputs for batch in batches(data, data, 7, limit=30)])
    assert len(rows) == 30
    assert set(rows.diff().tolist()) == {33, 34}
    assert torch.equal(torch.cat([batch.inputs for batch in batches(data, data, 7, limit=5000)]), data)


def test_evaluation_windows_lie_end_to_end_and_count_their_tokens():
    found = windows(torch.arange(21), 5, 3)
    assert [batch.inputs[:, 0].tolist() for batch in found] == [[0, 5, 10], [15]]
    assert [batch.tokens for batch in found] == [15, 5]
    assert torch.equal(found[1].targets, torch.arange(16, 21)[None])
    assert [batch.inputs[:, 0].tolist() for batch in windows(torch.arange(101), 5, 2, limit=4)] == [[0, 25], [50, 75]]


def test_evaluation_batches_are_transformed_like_training_batches():
    data = torch.full((3, 1, 2, 2), 255).byte()
    [batch] = batches(data, torch.arange(3), 8, transform=normalise((0.5,), (0.25,)))
    torch.testing.assert_close(batch.inputs, torch.full((3, 1, 2, 2), 2.0))


def test_inputs_and_targets_of_different_length_are_refused():
    for make in (lambda: Shuffled(torch.zeros(3), torch.zeros(4), 1, 0), lambda: batches(torch.zeros(3), torch.zeros(4), 1)):
        with pytest.raises(ValueError, match="as many examples"):
            make()


def test_a_batch_larger_than_the_data_is_refused_unless_the_last_batch_is_kept():
    data = torch.arange(3)
    with pytest.raises(ValueError, match="at most the 3 examples"):
        Shuffled(data, data, 4, 0)
    assert next(Shuffled(data, data, 4, 0, drop_last=False)).examples == 3
