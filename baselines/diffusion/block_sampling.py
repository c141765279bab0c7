"""Generation block by block: masks of the current block are revealed one at a time, given a KV cache of earlier ones.

Within a block this is first hitting, the exact limit of infinitely many small diffusion steps: masks are revealed in a
uniformly random order, each token drawn in float64 given what the block shows by then, with one network evaluation
each. The first evaluation of a block also processes the tokens finished before it (the prompt, or the previous block)
and stores their keys and values, so there are as many evaluations as revealed tokens.

In the last block only the wanted tokens are revealed and the rest stay masked: a text that ends inside a block is
scored that way, and training has seen such blocks, unlike shorter ones. Nothing is approximate within the N positions
of the stack. Beyond them a block sees only the last N - S positions, without BOS, through keys that were computed while
their own past was visible; rotary positions keep counting, since attention depends only on their differences.

Shapes: B sequences, L positions, S positions per block, N positions of the stack, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import duel
from ltm.api import Generations, Rng, Sampling
from ltm.nn.cache import KeyValueCache
from ltm.nn.output_head import logits_of
from ltm.nn.sampling import draw, up_to_stop
from ltm.nn.spans import check_ids
from ltm.nn.transformer import Transformer
from ltm.rng import SequenceRng


@torch.no_grad()
def continue_in_blocks(
    stack: Transformer,
    block_size: int,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    rng: Rng,
    unmasking: duel.Unmasking = "any_order",
) -> Generations:
    """Continue each prompt, to any length; prompts of equal length run as a batch. A prompt may end inside a block.

    The tokens of a block come in random order, or in that of a rule (`baselines.duel`).

    Raises:
        ValueError: a prompt longer than the stack holds, a text longer than a stack that is a single block, no new
            token, an id outside the vocabulary, or `reinfer_every`.
    """
    room, longest = stack.config.max_length - 1, max((len(p) for p in prompts), default=0)
    if sampling.reinfer_every:
        raise ValueError("reinfer_every is for models that infer latents; a diffusion model has none")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if longest > room:
        raise ValueError(f"the {longest} tokens of a prompt exceed the {room} that fit after the BOS")
    if block_size > room and longest + max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the {room} that fit after the BOS: "
            "a single block leaves no earlier one to continue from; use a smaller block_size"
        )
    rng = SequenceRng.of(rng, len(prompts))
    outputs: list[list[int]] = [[] for _ in prompts]
    evaluations = [0] * len(prompts)
    for length in sorted({len(p) for p in prompts}):
        rows = [r for r, p in enumerate(prompts) if len(p) == length]
        tokens_BL = torch.tensor([list(prompts[r]) for r in rows], dtype=torch.int64).view(len(rows), length)
        check_ids(tokens_BL, stack.vocab_size)
        tokens_BL = tokens_BL.to(stack.embedding.device)
        new_BT, used_B = _continue(stack, block_size, tokens_BL, max_new_tokens, sampling, rng.select(rows), unmasking)
        for r, new, used in zip(rows, new_BT.tolist(), used_B.tolist(), strict=True):
            outputs[r], evaluations[r] = up_to_stop(new, sampling.stop_ids), used
    return Generations(tokens=outputs, network_evaluations=evaluations)


def _continue(
    stack: Transformer,
    S: int,
    tokens_BL: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    rng: SequenceRng,
    unmasking: duel.Unmasking,
) -> tuple[Tensor, Tensor]:
    """Return new tokens (B, T), fewer if all rows stop, meaningless after a row's stop id; and evaluations (B,)."""
    mask_id, device = stack.vocab_size, tokens_BL.device
    text_BL = stack.after_bos(tokens_BL)
    first, end = text_BL.shape[1], text_BL.shape[1] + max_new_tokens
    stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)
    row_B = torch.arange(len(text_BL), device=device)
    done_B, evaluations_B = torch.zeros_like(row_B, dtype=torch.bool), torch.zeros_like(row_B)
    noise, caches, stored = rng.stream("block_confidence"), [KeyValueCache() for _ in stack.blocks], 0
    for start in range(first // S * S, end, S):
        given, wanted = text_BL.shape[1] - start, min(S, end - start)
        canvas_BS = F.pad(text_BL[:, start:], (0, S - given), value=mask_id)
        # A block's noise depends neither on what is given in it nor on which rows continue.
        order_u_BS, token_u_BS = noise.uniform(2, S).to(device).unbind(1)
        order_XB = given + order_u_BS[:, given:wanted].argsort(1).T
        for position_B, u_B in zip(order_XB, token_u_BS.T, strict=False):
            inputs = torch.cat([text_BL[:, stored:start], canvas_BS], 1)
            h_BLD = evaluate(stack, S, inputs, stored, caches)
            stored = start
            if unmasking == "any_order":
                logits_BV = logits_of(h_BLD[row_B, position_B - S], stack.head())
            else:
                masked_BS = (canvas_BS == mask_id) & (torch.arange(S, device=device) < wanted)
                candidate_BS = duel.candidates(unmasking, masked_BS, S)
                logits_NV = logits_of(h_BLD[:, -S:][candidate_BS], stack.head())
                chosen_B = duel.choose(unmasking, logits_NV, candidate_BS)
                position_B, logits_BV = candidate_BS.nonzero()[chosen_B, 1], logits_NV[chosen_B]
            canvas_BS[row_B, position_B] = draw(logits_BV, u_B, sampling)
            evaluations_B += ~done_B
            new_BT = canvas_BS[:, max(first - start, 0) : wanted]
            known_BT = (new_BT != mask_id).cumprod(1).bool()
            done_B |= (known_BT & torch.isin(new_BT, stop_ids)).any(1)
            if done_B.all():
                break
        text_BL = torch.cat([text_BL[:, :start], canvas_BS], 1)
        if done_B.all():
            break
    return text_BL[:, first:end], evaluations_B


def evaluate(stack: Transformer, S: int, inputs_BL: Tensor, start: int, caches: list[KeyValueCache]) -> Tensor:
    """Return hidden states of whole blocks from position `start` on, the last with masks, (B, L, D).

    A position sees its own block and the N / S - 1 blocks before it. The caches are left with what the next evaluation
    of the last block may attend to, so not with that block itself.
    """
    N, L = stack.config.max_length, inputs_BL.shape[1]
    visible = None  # the last block sees all that the caches hold
    if L > S:
        block_K = torch.arange(start - len(caches[0]), start + L, device=inputs_BL.device) // S
        age = block_K[-L:, None] - block_K
        visible = (age >= 0) & (age < N // S)
    h_BLD, _ = stack.run(stack.embed(inputs_BL), positions_L=range(start, start + L), caches=caches, visible=visible)
    for cache in caches:
        cache.drop(S)
        cache.keep(N - S)
    return h_BLD
