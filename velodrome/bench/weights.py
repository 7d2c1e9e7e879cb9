"""Weights from a file into a model, and the optimizer's state where the file holds one: torch's own format without pickled code, or safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from velodrome.recipes.load import cause

MODEL = ("model", "state_dict", "model_state_dict", "module", "net", "network")
OPTIMIZER = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
STEP = ("step", "global_step", "iteration", "iter", "t")
PREFIXES = ("module.", "_orig_mod.", "model.", "_forward_module.")


def load_weights(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[int, list[str], bool]:
    """(step that the file names or 0, notes, whether the optimizer's state came along). ValueError for what does not fit, by name."""
    tree = read_weights(path)
    state = next((tree[key] for key in MODEL if isinstance(tree.get(key), Mapping)), tree)
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no weights: its entries are {', '.join(map(str, list(tree)[:6])) or 'none'}.")
    own = model.state_dict()
    tensors = _named_alike(tensors, own)
    missing, wrong = [n for n in own if n not in tensors], [n for n in tensors if n not in own]
    shapes = [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    if shapes:
        n = shapes[0]
        raise ValueError(
            f"{path} does not fit the model: {n} is {tuple(tensors[n].shape)} in the file and {tuple(own[n].shape)} in the model."
        )
    if missing:
        more = f", and has {wrong[0]}, which the model has not" if wrong else ""
        raise ValueError(f"{path} does not fit the model: it lacks {missing[0]}{more}.")
    model.load_state_dict({n: tensors[n] for n in own})
    notes = [f"{len(wrong)} tensors of the file are not the model's ({wrong[0]}, …)"] if wrong else []
    step = next((int(tree[key]) for key in STEP if isinstance(tree.get(key), int)), 0)
    kept = next((tree[key] for key in OPTIMIZER if tree.get(key) is not None), None)
    kept = kept[0] if isinstance(kept, list) and kept else kept
    if optimizer is None:
        return step, notes, False
    if not isinstance(kept, Mapping):
        return step, [*notes, "the file holds no state of an optimizer, so nothing that depends on one is looked at"], False
    try:
        optimizer.load_state_dict(dict(kept))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its optimizer's state does not fit {type(optimizer).__name__}: {cause(error)}.") from error
    return step, notes, True


def read_weights(path: Path) -> dict[str, Any]:
    """The content of the file, on the CPU; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}.") from None
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no file of weights: {cause(error)[:200]}.") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a damaged pickle raises; torch's message is a page
        raise ValueError(f"{path} holds more than weights, or is damaged: save model.state_dict() ({type(error).__name__}).") from error
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} must hold a state_dict, got {type(tree).__name__}: save model.state_dict().")
    return dict(tree)


def _named_alike(tensors: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without the prefix that a wrapper (DDP, compile, Lightning) put before all names."""
    for _ in PREFIXES:
        if any(name in own for name in tensors):
            return tensors
        prefix = next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), None)
        if prefix is None:
            return tensors
        tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
    return tensors
