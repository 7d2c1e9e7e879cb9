r"""Forgetting between evaluations: the stability gap and worst-case accuracies (De Lange, van de Ven & Tuytelaars 2023, https://arxiv.org/abs/2205.13452).

    found = stability({"first": accuracies_of_first, "second": accuracies_of_second}, learned={"first": 300}, window=10)
    print(found.min_acc, found.wc_acc, found.forgetting["first"])

`accuracies[task][i]` is the accuracy on a task's evaluation set at evaluation i, one for each step or every few steps; `learned[task]` is the evaluation
at which training on it ended. The task without an end is the one being learned.

* min-ACC: mean over the old tasks of the lowest accuracy since they were learned;
* WC-ACC at k tasks: $\frac1k A_k + (1 - \frac1k)\,$min-ACC, what is had at worst;
* WF over windows of w evaluations: the largest fall $A_i - A_j$, i < j inside a window; WP: the largest rise.

A minimum over many noisy evaluations is lower than any one of them would be: with n examples an accuracy of p scatters by $\sqrt{p(1-p)/n}$.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from velodrome.probes.estimate import Estimate, exact, unidentified

ACCURACY = "accuracy, 0 to 1"


@dataclass(frozen=True)
class Stability:
    """`min_acc`, `wc_acc`: at the last evaluation. By task: `lowest` accuracy since it was learned and `lowest_at`, the evaluation; the `gap`, what it had
    lost there of its accuracy at the end of its training, and `recovered`, what it has now of that; `forgetting` (WF) and `plasticity` (WP)."""

    min_acc: Estimate
    wc_acc: Estimate
    lowest: dict[str, float]
    lowest_at: dict[str, int]
    gap: dict[str, float]
    recovered: dict[str, float]
    forgetting: dict[str, float]
    plasticity: dict[str, float]


def stability(accuracies: Mapping[str, Sequence[float]], learned: Mapping[str, int], window: int = 10) -> Stability:
    """The measures of all tasks; exact on the given evaluation sets. ValueError for series of unequal length or an end outside of them."""
    series = {task: np.asarray(a, dtype=float) for task, a in accuracies.items()}
    lengths = {len(a) for a in series.values()}
    if len(lengths) != 1 or not all(((a >= 0) & (a <= 1)).all() for a in series.values()):
        raise ValueError(f"accuracies must be between 0 and 1, as many for each task, got {sorted(lengths)} values.")
    size = lengths.pop()
    for task, end in learned.items():
        if task not in series or not 0 <= end < size - 1:
            raise ValueError(f"learned must give a task's evaluation before the last of {size}, got {end!r} for {task!r}.")
    if isinstance(window, bool) or not isinstance(window, int) or window < 2:
        raise ValueError(f"window must be two evaluations or more, got {window!r}.")
    since = {task: series[task][end + 1 :] for task, end in learned.items()}
    at = {task: int(a.argmin()) for task, a in since.items()}
    lowest = {task: float(a[at[task]]) for task, a in since.items()}
    ends = {task: float(series[task][end]) for task, end in learned.items()}
    least = float(np.mean(list(lowest.values()))) if lowest else None
    present = [task for task in series if task not in learned]
    if least is None:
        low, worst = (unidentified(ACCURACY, "no task has been learned before") for _ in range(2))
    else:
        k = len(learned) + len(present)
        now = sum(float(series[task][-1]) for task in present)
        low, worst = exact(least, ACCURACY, n=size), exact((now + len(learned) * least) / k, ACCURACY, n=size)
    return Stability(
        low,
        worst,
        lowest,
        {task: end + 1 + at[task] for task, end in learned.items()},
        {task: ends[task] - lowest[task] for task in learned},
        {task: float(series[task][-1]) - lowest[task] for task in learned},
        {task: largest_fall(a, window) for task, a in series.items()},
        {task: largest_fall(-a, window) for task, a in series.items()},
    )


def largest_fall(values: np.ndarray, window: int) -> float:
    """The largest $A_i - A_j$ with i < j in one window of so many evaluations; 0 where nothing falls."""
    width = min(window, len(values))
    if width < 2:
        return 0.0
    views = np.lib.stride_tricks.sliding_window_view(values, width)
    return float(max((np.maximum.accumulate(views, 1) - views).max(), 0.0))
