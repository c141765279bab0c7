"""Weights of the checkpoints that Lightning wrote for MDLM, BD3-LM, Duo and their controls: as trained, or averaged.

`state_dict` has the weights as trained. Their moving average, which the published numbers are of, is the bare list
`ema.shadow_params`: the parameters of the network `backbone`, then those of `noise`, each in the order of the state
dict, which also has buffers.
"""

from __future__ import annotations

import torch

from ltm.errors import UserError
from ltm.untrusted.display import shown
from ltm.untrusted.pickled_tensors import Checkpoint

AVERAGED = ("backbone.", "noise.")
"""What the names of averaged parameters begin with, in the order of the average."""
BUFFERS = frozenset({"inv_freq", "sampling_eps_min", "sampling_eps_max"})
"""Last parts of the names of entries that are not trained, and so have no average."""
_COMPILED = "_orig_mod."  # torch.compile puts this in front of the names of what it compiles


def raw_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights as trained, by their names in the network that is not compiled.

    Raises:
        UserError: there is no state dict, something in it is no tensor, or two names are one without `_orig_mod.`.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in checkpoint.tensors("state_dict").items():
        plain = name.replace(_COMPILED, "")
        if plain in found:
            raise UserError(f"{checkpoint.where}, state_dict: expected {shown(plain)} once, found it compiled and not")
        found[plain] = tensor
    return found


def ema_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the moving average of the weights, under the names of `raw_weights`; buffers are as trained.

    Raises:
        UserError: there is no average, or its tensors are not those of the state dict in number, shape or dtype.
    """
    weights = raw_weights(checkpoint)
    where = f"{checkpoint.where}, ema.shadow_params"
    if not isinstance(checkpoint.content, dict) or checkpoint.content.get("ema") is None:
        raise UserError(f"{checkpoint.where} has no moving average (ema) of its weights; take the raw weights")
    averages = checkpoint.tensor_list("ema", "shadow_params")
    names = [
        name
        for prefix in AVERAGED
        for name in weights
        if name.startswith(prefix) and name.rpartition(".")[2] not in BUFFERS
    ]
    if len(averages) != len(names):
        raise UserError(
            f"{where}: expected {len(names):,} tensors, one for each entry {' or '.join(f'{p}*' for p in AVERAGED)} of "
            f"state_dict that is no buffer ({', '.join(sorted(BUFFERS))}), found {len(averages):,}"
        )
    for i, (name, average) in enumerate(zip(names, averages, strict=True)):
        expected, found = (f"{str(list(t.shape))[:80]} {t.dtype}" for t in (weights[name], average))
        if expected != found:
            raise UserError(f"{where}: expected {expected} at {i}, as {shown(name)}, found {found}")
    return weights | dict(zip(names, averages, strict=True))
