"""The gradient that every fit of z descends: of -log p(x|z) in z, through the decoder of any latent model.

Shapes: B texts, L tokens, Y layers, G latent vectors per layer, D width, N positions of the texts asked for together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltm.latent.base import LatentModel
from ltm.latent.posterior import LikelihoodGradient
from ltm.nn.output_head import nll_gradient, weighted_nll


def likelihood_gradient(
    model: LatentModel,
    tokens_BL: Tensor,
    weights_BL: Tensor | None,
    *,
    matmul: str,
    leak_gradients: bool = False,
    inputs_BL: Tensor | None = None,
) -> LikelihoodGradient:
    """The gradient of -log p(x|z) in z over the tokens that `weights_BL` does not zero, of all texts or of some.

    The decoder's weights receive none, unless `leak_gradients`: then summed over tokens, straight into `.grad`.

    Args:
        matmul: dtype of matrix products, a `ltm.devices.Matmul` setting.
        inputs_BL: the decoder's inputs; BOS and all tokens but the last if None.
    """
    decoder = model.decoder
    master = decoder.embedding.dtype
    stack = decoder if leak_gradients else decoder.frozen(decoder.matmul_dtype(matmul))
    with torch.set_grad_enabled(leak_gradients):
        # Any q gives a bound, so that the fit need not keep its residual stream in float32.
        prepared = model.prepare(stack, tokens_BL, inputs_BL, narrow=not leak_gradients)
    head = stack.head()
    of_tokens_BL = torch.ones_like(tokens_BL, dtype=master) if weights_BL is None else weights_BL.to(master)

    def gradient(z_BYGD: Tensor, rows: Tensor | None = None, /) -> Tensor:
        z_BYGD = z_BYGD.detach().requires_grad_()
        part, targets_N, weights_N = prepared, tokens_BL.flatten(), of_tokens_BL.flatten()
        if rows is not None:
            part, targets_N, weights_N = prepared.of(rows), tokens_BL[rows].flatten(), of_tokens_BL[rows].flatten()
        with torch.enable_grad():
            h_ND = model.hidden(stack, part, z_BYGD).flatten(0, 1)
        if leak_gradients:
            loss = weighted_nll(h_ND, stack.head(), targets_N, weights_N)
            torch.autograd.backward(loss, retain_graph=True)  # the prepared part serves every step
            assert z_BYGD.grad is not None
            return z_BYGD.grad
        (gradient_z,) = torch.autograd.grad(h_ND, z_BYGD, nll_gradient(h_ND, head, targets_N, weights_N))
        return gradient_z

    return gradient
