"""Gpu: the laptop suite's definitions on a ladder of scales, to see whether a speed-up survives scale."""

from velodrome.bench.suite import Suite

RUNGS = ("", "+4x", "+16x")


def gpu() -> Suite:
    """Language model, residual network, recurrent network, auto-encoder and matrix completion at 1, 4 and 16 times the parameters and the examples.

    The convolutions on MNIST go to 4 only. The perceptron and the vision transformer on scikit-learn's digits are left out: 1,438 images are seen 22 times
    at scale 1 and would be seen 350 times at 16, so that such a race would be about memorising them.
    """
    ladder = ("stdlib-gpt", "cifar10-resnet", "shakespeare-rnn", "mnist-autoencoder", "ratings")
    return Suite(
        name="gpu",
        summary="workloads of the laptop suite at 1, 4 and 16 times the parameters and examples",
        workloads=(*(w + rung for w in ladder for rung in RUNGS), "mnist-cnn", "mnist-cnn+4x"),
        develop=(*(w + rung for w in ("shakespeare-rnn", "mnist-autoencoder") for rung in RUNGS), "mnist-cnn", "mnist-cnn+4x"),
    )
