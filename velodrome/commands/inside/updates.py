"""What steps did: sizes, rotation, eps, weights that do not move; loss and norms over the window."""

from velodrome.bench.window import Window
from velodrome.commands.inside.part import Part, Scene
from velodrome.probes.findings.finding import Finding
from velodrome.probes.findings.steps import findings, remarks
from velodrome.probes.updates.steps import Numbers, medians
from velodrome.reports.inside import Chart, Reading
from velodrome.reports.words import digits

TOPIC = "Updates"
HEAT = {
    "relative_update": "change",
    "neuron_rotation": "rotation",
    "equilibrium": "balance",
    "neuron_norm": "norm",
    "eps_share": "eps",
    "unmoved": "unmoved",
}
SHARES = ("eps_share", "unmoved")


def updates(scene: Scene) -> Part:
    """Medians over the window's updates."""
    window, part = scene.window, Part()
    if not window.reports:
        part.notes.append(
            "nothing is known of the updates: no step was made" + (", for there is no optimizer" if scene.subject.optimizer is None else "")
        )
        return part
    middle = medians(window.reports)
    for i, group in enumerate(middle.groups):
        part.readings += groups(group, len(window.reports), f"group {i}" if len(middle.groups) > 1 else "")
    part.findings += [Finding("update", "sick", sentence) for sentence in findings(middle)]
    part.findings += [Finding("equilibrium", "remark", sentence) for sentence in remarks(middle)]
    part.charts += [curve(window), heat(middle.parameters, len(window.reports))]
    return part


def groups(group: Numbers, n: int, where: str) -> list[Reading]:
    """The numbers of one group of parameters, medians over the steps."""
    said = {
        "relative_update": ("change of weights per step", "of their norm"),
        "neuron_rotation": ("rotation of a neuron", "radians per step"),
        "eps_share": ("elements where eps leads", "share"),
        "unmoved": ("elements that did not move", "share"),
    }
    return [
        Reading(TOPIC, what, group[key], unit, n=n, where=where)
        for key, (what, unit) in said.items()
        if group.get(key) is not None and (key not in SHARES or group[key])
    ]


def curve(window: Window) -> Chart:
    """The loss of every step."""
    rows = [{"x": t, "y": y} for t, y in zip(window.steps, window.losses, strict=True) if y == y and abs(y) != float("inf")]
    return Chart(
        "loss",
        "lines",
        "Loss",
        "Of each step's batch, before its update.",
        "step",
        "training loss",
        rows,
        log_y=all(r["y"] > 0 for r in rows),
    )


def heat(parameters: dict[str, Numbers], n: int) -> Chart:
    """Parameters by numbers."""
    shown = {key: title for key, title in HEAT.items() if any(row[key] for row in parameters.values())}
    rows = [
        {"name": name, "column": title, "value": row[key], "text": cell(key, row[key])}
        for name, row in parameters.items()
        for key, title in shown.items()
    ]
    caption = (
        f"Medians over {n} steps. Change: norm of the change over norm of the weights. Rotation of a neuron per step and the one at which "
        "decay and updates balance, in radians. Norm of a neuron. Shade: within each column."
    )
    return Chart("parameters", "heat", "Every parameter", caption, "", "", rows)


def cell(key: str, value: float | None) -> str:
    """A number for the heat map; shares in per cent."""
    return "" if value is None else f"{value:.0%}" if key in SHARES else digits(value)
