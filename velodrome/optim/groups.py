"""Which parameters decay, and which are hidden matrices: read off the modules that hold them, not off the number of dimensions."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

Params = nn.Module | Iterable[Any]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear)


def decay_groups(params: Params, weight_decay: float) -> Any:
    """For a model, two groups: the weights of linear and convolution layers decay, everything else (biases, norms, gains, embeddings) does not.

    Parameters, named parameters and groups pass unchanged, as torch would take them: then everything decays.
    """
    if not isinstance(params, nn.Module):
        return params
    decaying = {id(p) for _, p in matrices(params)}
    named = list(params.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in named if id(p) in decaying]},
        {"params": [(n, p) for n, p in named if id(p) not in decaying], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def hidden_matrices(params: Params) -> tuple[list[Any], list[Any]]:
    """(hidden, others): what an orthogonalising rule should see, and what it should not.

    Of a model, hidden are the weights of linear and convolution layers except the output layer (the module called head, lm_head, classifier
    or fc; else the last linear layer) and weights shared with an embedding. Of plain or named parameters, those with two dimensions or more.
    """
    if not isinstance(params, nn.Module):
        items = list(params)
        if any(isinstance(item, dict) for item in items):
            raise ValueError("Muon chooses its own groups: pass the model or its parameters, or build Chain with 'rules' in every group.")
        return [i for i in items if tensor(i).ndim >= 2], [i for i in items if tensor(i).ndim < 2]
    weights = matrices(params)
    named_heads = [n for n, _ in weights if n.split(".")[-2:-1] and n.split(".")[-2] in ("head", "lm_head", "classifier", "fc")]
    head = {named_heads[-1] if named_heads else weights[-1][0]} if len(weights) > 1 else set()
    hidden = {id(p) for n, p in weights if n not in head}
    named = list(params.named_parameters())
    return [(n, p) for n, p in named if id(p) in hidden], [(n, p) for n, p in named if id(p) not in hidden]


def matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights of linear and convolution layers, by name, in the order of the modules; one shared with an embedding is not among them."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, WEIGHTED)]
    attention = [(f"{n}.in_proj_weight", m.in_proj_weight) for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    found = [(f"{name}.weight".lstrip("."), m.weight) for name, m in modules] + [(n, w) for n, w in attention if w is not None]
    return [(name, w) for name, w in found if id(w) not in embedded]


def tensor(item: Any) -> Tensor:
    """The parameter of a plain or a (name, parameter) item."""
    return item[1] if isinstance(item, tuple) else item
