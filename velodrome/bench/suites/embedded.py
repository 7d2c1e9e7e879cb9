"""Embedded: the part of the laptop suite that needs no data folder."""

from velodrome.bench.suite import Suite


def embedded() -> Suite:
    """Perceptron, vision transformer, language model and matrix completion on data that is on every machine."""
    return Suite(
        name="embedded",
        summary="the laptop suite's workloads that need no data folder",
        workloads=("digits", "digits-vit", "stdlib-gpt", "ratings"),
        develop=("digits", "ratings"),
    )
