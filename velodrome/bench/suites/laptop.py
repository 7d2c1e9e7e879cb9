"""Laptop: eight workloads of eight kinds, each within a minute on two cores."""

from velodrome.bench.suite import Suite


def laptop() -> Suite:
    """Perceptron, convolutions, residual network, vision transformer, language model, recurrent network, auto-encoder, matrix completion."""
    return Suite(
        name="laptop",
        summary="eight kinds of networks and data, each within a minute on two cores",
        workloads=(
            *("digits", "mnist-cnn", "cifar10-resnet", "digits-vit"),
            *("stdlib-gpt", "shakespeare-rnn", "mnist-autoencoder", "ratings"),
        ),
        # One of each pair of relatives: dense, convolutional, sequence, and one with a loss that is no classification.
        develop=("digits", "mnist-cnn", "shakespeare-rnn", "mnist-autoencoder"),
    )
