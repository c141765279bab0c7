"""Is a network from elsewhere what its likelihood assumes: causal, cached without error, with positions for all tokens?

`AutoModelForCausalLM` also opens networks that see the tokens they predict, such as RoBERTa without `is_decoder`. Two
tests find them. The derivative of a prediction by the embeddings of later tokens is exactly 0 in a causal network, as a
masked weight is exactly 0 in any float format; so a leak shows however small it is beside rounding. And predictions
must not move when later ids change, which shows leaks that have no derivative, such as choices and masks.

Shapes: B texts, L tokens, V outputs, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.pretrained.passes import Passes

LENGTH = 12
"""Tokens of the texts that are read, BOS included."""
CACHED = 3
"""Texts that are decoded together."""
TOLERANCE = {torch.float64: 2.0**-26, torch.float32: 2.0**-13, torch.bfloat16: 2.0**-4, torch.float16: 2.0**-6}
"""How far predictions may move by rounding, as a share of the largest |log p| seen: a thousand roundings of float32.

Float64 has more room, as many networks compute their norms in float32; narrower formats have less."""
_VALUES = 1 << 25


class NotCausal(ValueError):
    """A network whose predictions are not, or cannot be shown to be, those of each token from the ones before."""


def check(network: nn.Module, passes: Passes, *, bos: int, outputs: int, padding: int | None, longest: int) -> None:
    """Check a network on random texts; a few forward passes and a backward pass of 12 tokens.

    Args:
        network: with its weights, in evaluation mode.
        passes: how it is read.
        bos: the id before a text.
        outputs: V.
        padding: the id that its config calls padding.
        longest: the most tokens that it will be given, BOS included.

    Raises:
        NotCausal: a prediction depends on later tokens, or cannot be shown not to; decoding with the cache gives other
            probabilities; or the positions are not those of the places in the text, or are fewer than `longest`.
    """
    device, length = next(network.parameters()).device, min(LENGTH, longest)
    noise = torch.Generator().manual_seed(0)
    texts_BL = torch.randint(outputs, (CACHED, length), generator=noise)
    texts_BL[:, 0] = bos
    with _unrecorded(network):
        texts_BL = texts_BL.to(device)
        logp_BLV = _log_p(network, passes, texts_BL)
        _check_positions(network, passes, texts_BL, padding, longest)
        _check_derivatives(network, passes, texts_BL[:1], torch.randn(outputs, generator=noise))
        _check_changes(network, passes, texts_BL[:1], outputs, bos if padding is None else padding)
        _check_cache(network, passes, texts_BL, logp_BLV)


@contextmanager
def _unrecorded(network: nn.Module) -> Iterator[None]:
    """Take no derivatives by weights, whose activations would be kept."""
    wanted = [p for p in network.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


def _check_derivatives(network: nn.Module, passes: Passes, text_1L: Tensor, weights_V: Tensor) -> None:
    """Differentiate the predictions of row b up to place b by the embeddings of all places, in one pass."""
    L = text_1L.shape[1]
    rows_BL, leaves = text_1L.repeat(L - 1, 1), []

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1] * 1  # some networks add positions in place, which a leaf does not allow

    hook = _embedding(network).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits_BLV = passes.logits(network, rows_BL)
            seen_BL = torch.ones(L - 1, L, dtype=torch.bool, device=rows_BL.device).tril()
            predictions = (logits_BLV * weights_V.to(logits_BLV)).masked_fill(~seen_BL[..., None], 0.0).sum()
            found = torch.autograd.grad(predictions, leaves, allow_unused=True)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise NotCausal(
            f"its predictions cannot be differentiated to see whether they depend on later tokens: {error}"
        ) from error
    finally:
        hook.remove()
    for gradient in found:
        if gradient is None or gradient.numel() % rows_BL.numel():
            continue
        by_place = gradient if gradient.shape[:2] == rows_BL.shape else gradient.transpose(0, 1)
        size_BL = by_place.reshape(L - 1, L, -1).abs().amax(-1)
        later_BL = ~seen_BL & (size_BL != 0)
        if bool(later_BL.any()):
            row, place = later_BL.nonzero()[0].tolist()
            raise NotCausal(
                f"the predictions after its first {_tokens(row + 1)} depend on token {place + 1} of a text, with a "
                f"derivative of {float(size_BL[row, place]):.2g}"
            )


def _check_changes(network: nn.Module, passes: Passes, text_1L: Tensor, outputs: int, padding: int) -> None:
    """Change each token, and replace ends of the text by padding; no earlier prediction may move.

    The text is taken as it is, and with padding inside: some networks count it to tell how long a text is.
    """
    L = text_1L.shape[1]
    padded_1L = text_1L.clone()
    padded_1L[:, 1] = padding
    for base_1L in (text_1L, padded_1L):
        changes = []
        for place in range(1, L):
            row_1L = base_1L.clone()
            row_1L[:, place] = (row_1L[:, place] + place) % outputs
            changes.append((place, row_1L))
        for place in sorted({1, L // 2, L - 1}):
            row_1L = base_1L.clone()
            row_1L[:, place:] = padding
            changes.append((place, row_1L))
        logp_BLV = _log_p(network, passes, torch.cat([base_1L, *(row_1L for _, row_1L in changes)]))
        limit = _rounding(network, logp_BLV)
        for (place, _), row_LV in zip(changes, logp_BLV[1:], strict=True):
            moved = float((row_LV[:place] - logp_BLV[0, :place]).nan_to_num().abs().max())
            if not moved <= limit:
                raise NotCausal(
                    f"the predictions after its first {_tokens(place)} move by {moved:.2g} nats with token {place + 1} "
                    f"of a text, where rounding makes at most {limit:.2g}"
                )


def _check_cache(network: nn.Module, passes: Passes, texts_BL: Tensor, logp_BLV: Tensor) -> None:
    """Decode texts token by token, after a beginning that is read at once."""
    limit, past, worst, start = _rounding(network, logp_BLV), None, 0.0, 0
    for end in range(max(1, texts_BL.shape[1] // 2), texts_BL.shape[1] + 1):
        try:
            with torch.no_grad():
                logits_BV, past = passes.next_logits(network, texts_BL[:, start:end], start, past)
        except Exception as error:  # of any kind: the package's, for a cache that is not made for this network
            raise NotCausal(f"its cache cannot be used to decode: {error}") from error
        worst, start = max(worst, float((_normed(logits_BV) - logp_BLV[:, end - 1]).nan_to_num().abs().max())), end
    if not worst <= limit:
        raise NotCausal(
            f"decoding with its cache changes predictions by {worst:.2g} nats, where rounding makes at most "
            f"{limit:.2g}: what it generates would not be drawn from what is scored"
        )


def _check_positions(network: nn.Module, passes: Passes, texts_BL: Tensor, padding: int | None, longest: int) -> None:
    """Compare the rows of tables that a text looks up with its places, also with a padding id inside."""
    L = texts_BL.shape[1]
    tables = _tables(network, passes, texts_BL)
    for rows, first in tables:
        if first + longest > rows:
            raise NotCausal(f"max_length must be at most {rows - first}, its positions, found {longest}")
    if padding is None or L < 4:
        return
    padded_BL = texts_BL.clone()
    padded_BL[:, L // 2] = padding
    if _tables(network, passes, padded_BL) != tables:
        raise NotCausal("a padding id inside a text shifts the positions of the tokens after it")


def _tables(network: nn.Module, passes: Passes, texts_BL: Tensor) -> list[tuple[int, int]]:
    """Return the rows of each table of positions, and the row of the first place."""
    places = torch.arange(texts_BL.shape[1], device=texts_BL.device)
    with torch.no_grad(), _LookUps() as seen:
        passes.logits(network, texts_BL)
    found = []
    for rows, ids in seen.tables:
        if ids.shape[-1:] == places.shape:
            first = int(ids.flatten()[0])
            if bool((ids - first == places).all()):
                found.append((rows, first))
    return found


class _LookUps(TorchDispatchMode):
    """Notes the rows of every embedding table, and the ids looked up in it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[int, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.embedding.default:
            self.tables.append((args[0].shape[0], args[1].detach().clone()))
        return function(*args, **(kwargs or {}))


def _embedding(network: Any) -> nn.Module:
    try:
        return network.get_input_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise NotCausal(f"what embeds its tokens cannot be found: {error}") from error


def _log_p(network: nn.Module, passes: Passes, rows_BL: Tensor) -> Tensor:
    """Return log p of every output after each place, (B, L, V), and refuse what is no number."""
    with torch.no_grad():
        first_1LV = _normed(passes.logits(network, rows_BL[:1]))
        at_once = max(1, _VALUES // first_1LV.numel())
        parts = [_normed(passes.logits(network, part_BL)) for part_BL in rows_BL.split(at_once)]
    logp_BLV = torch.cat(parts)
    if bool(logp_BLV.isnan().any()):
        raise NotCausal("its predictions after a random text are no numbers")
    return logp_BLV


def _normed(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _rounding(network: nn.Module, logp_BLV: Tensor) -> float:
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    sizes = logp_BLV[logp_BLV.isfinite()].abs()
    return TOLERANCE.get(dtype, 2.0**-6) * max(1.0, float(sizes.max()) if sizes.numel() else 1.0)


def _tokens(number: int) -> str:
    return "token" if number == 1 else f"{number} tokens"
