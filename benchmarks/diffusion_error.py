"""Monte Carlo error of a diffusion bound over a whole split, for several ways to draw masks.

`python -m benchmarks.diffusion_error --model mdlm-tiny` scores the split many times under different seeds. `seen` is
the standard deviation of the total over seeds, `stated` the error that one run reports with it; both are in per cent of
the total. The ratio divides the seen variance by that of independent t: the share of draws needed for equal error.
Shapes: K draws, B sequences, L tokens.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from baselines.diffusion.masking import DRAWS, draw_masks, variance_of_mean, visible_keys
from baselines.diffusion.mdlm import MDLM
from ltm import model_store
from ltm.data import corpora
from ltm.errors import UserError, run_command
from ltm.nn.output_head import token_nats
from ltm.nn.spans import prepare_batch
from ltm.rng import SequenceRng, seed_of
from ltm.training import checkpoint

MasksAndWeights = Iterator[tuple[Tensor, Tensor]]


def independent(real_BL: Tensor, rng: SequenceRng, draws: int) -> MasksAndWeights:
    """Draw t uniformly for each draw of each sequence; mask every token with probability t and weight 1 / t."""
    t, noise = rng.stream("t"), rng.stream("masks")
    for _ in range(draws):
        yield _at_rate(1 - t.uniform(1), noise.uniform(real_BL.shape[1]), real_BL)


def stratified(real_BL: Tensor, rng: SequenceRng, draws: int) -> MasksAndWeights:
    """Like `independent`, with t spread evenly over draws and sequences."""
    noise = rng.stream("masks")
    for t_B1 in 1 - rng.stratified("t", draws):
        yield _at_rate(t_B1, noise.uniform(real_BL.shape[1]), real_BL)


def counted_independent(real_BL: Tensor, rng: SequenceRng, draws: int) -> MasksAndWeights:
    """Draw the number of masked tokens uniformly and independently, with the rate integrated out."""
    for number in range(draws):
        noises = [SequenceRng(seed_of(rng.seed, index, number), [index]) for index in rng.indices]
        masks = [
            draw_masks(real_BL[row : row + 1], noise, draws=1, block_length=real_BL.shape[1])[0]
            for row, noise in enumerate(noises)
        ]
        yield torch.cat([m.masked_BL for m in masks]), torch.cat([m.weight_BL for m in masks])


def counted(real_BL: Tensor, rng: SequenceRng, draws: int) -> MasksAndWeights:
    """Like `counted_independent`, with the number spread evenly over draws and sequences, as the suite does it."""
    for masks in draw_masks(real_BL, rng, draws=draws, block_length=real_BL.shape[1]):
        yield masks.masked_BL, masks.weight_BL


def _at_rate(t_B1: Tensor, noise_BL: Tensor, real_BL: Tensor) -> tuple[Tensor, Tensor]:
    masked_BL = (noise_BL < t_B1) & real_BL
    return masked_BL, masked_BL / t_B1


ESTIMATORS: dict[str, Callable[[Tensor, SequenceRng, int], MasksAndWeights]] = {
    "independent t": independent,
    "stratified t": stratified,
    "independent count": counted_independent,
    "stratified count": counted,
}


@torch.no_grad()
def estimates(model: MDLM, tokens_BL: Tensor, lengths_B: Tensor, drawn: MasksAndWeights) -> Tensor:
    """Estimate the bound of each sequence from each draw of masks, nats, float64 (K, B)."""
    tokens_BL, _, real_BL = prepare_batch(tokens_BL, 0, lengths_B, model.vocab_size)
    visible = visible_keys(real_BL)
    nats_per_draw: list[Tensor] = []
    for masked_BL, weight_BL in drawn:
        h_ND = model.hidden_states(tokens_BL.masked_fill(masked_BL, model.mask_id), masked_BL, visible)
        nats_BL = torch.zeros_like(weight_BL)
        nats_BL[masked_BL] = token_nats(h_ND, model.decoder.head(), tokens_BL[masked_BL]).double()
        nats_per_draw.append((nats_BL * weight_BL).sum(1))
    return torch.stack(nats_per_draw)


def errors(
    model: MDLM, blocks: list[Tensor], name: str, *, seeds: int, draws: int, batch: int
) -> tuple[float, float, float]:
    """Return the mean total in nats, its standard deviation over seeds, and the root mean square of stated errors."""
    totals, variances = [], []
    for seed in range(seeds):
        total = variance = 0.0
        for first in range(0, len(blocks), batch):
            rows = blocks[first : first + batch]
            lengths_B = torch.tensor([len(row) for row in rows])
            tokens_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            rng = SequenceRng(seed, range(first, first + len(rows)))
            real_BL = torch.arange(tokens_BL.shape[1]) < lengths_B[:, None]
            nats_KB = estimates(model, tokens_BL, lengths_B, ESTIMATORS[name](real_BL, rng, draws))
            stated_B = variance_of_mean(nats_KB)
            total += float(nats_KB.mean(0).sum())
            variance += math.nan if stated_B is None else float(stated_B.sum())
        totals.append(total)
        variances.append(variance)
    values = torch.tensor(totals, dtype=torch.float64)
    return float(values.mean()), float(values.std()), math.sqrt(sum(variances) / seeds)


def main() -> None:
    """Score the split and print the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.diffusion_error", description=__doc__)
    p.add_argument("--model", default="mdlm-tiny", help="name or path of a trained mdlm model; default: mdlm-tiny")
    p.add_argument("--corpus", default="pydocs")
    p.add_argument("--split", default="validation")
    p.add_argument("--seeds", type=int, default=20)
    p.add_argument("--draws", type=int, default=DRAWS, help=f"draws of masks per block; default: {DRAWS}")
    p.add_argument("--batch", type=int, default=16)
    options = p.parse_args()
    if options.seeds < 2 or options.draws < 1 or options.batch < 1:
        raise UserError("expected at least 2 seeds, 1 draw and a batch of 1")
    loaded = checkpoint.load(model_store.find(options.model))
    model = loaded.model
    if not isinstance(model, MDLM):
        raise UserError(f"{options.model} is of family {model.family}; expected an mdlm model")
    data_dir = os.environ.get("LTM_DATA_DIR")
    split = corpora.load(options.corpus, options.split, data_dir=Path(data_dir) if data_dir else None)
    stream = torch.as_tensor(loaded.tokenizer.encode("".join(split.iter_texts()))).long()
    blocks = list(stream.split(model.block_length))
    table = Table(
        title=f"{options.model}, {options.corpus}/{options.split}: {len(stream):,} tokens in {len(blocks)} blocks, "
        f"{options.draws} draws, {options.seeds} seeds"
    )
    for column in ("masks", "nats per token", "seen, %", "stated, %", "variance ratio"):
        table.add_column(column, justify="left" if column == "masks" else "right")
    first_seen = None
    for name in ESTIMATORS:
        value, seen, stated = errors(
            model.eval(), blocks, name, seeds=options.seeds, draws=options.draws, batch=options.batch
        )
        first_seen = first_seen or seen
        cells = [f"{100 * seen / -value:.3f}", f"{100 * stated / -value:.3f}", f"{(seen / first_seen) ** 2:.3f}"]
        table.add_row(name, f"{-value / len(stream):.4f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
