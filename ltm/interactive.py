"""The front door in Python: load a model, score a text, generate, evaluate. `import ltm` hands these names on."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.progress import count

if TYPE_CHECKING:
    from ltm.api import Kind, LoadedModel
    from ltm.result import Result

_SIGNS = {"exact": "", "lower_bound": "at most ", "upper_bound": "at least ", "estimate": "about "}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The cost of a text under a model: minus its log-likelihood, or a bound on it.

    Attributes:
        nats: total cost; less is better.
        kind: `exact`; `lower_bound` (on the log-likelihood, so the true cost is at most `nats`); or `estimate`.
        likelihood: name of the likelihood, such as `exact` or `elbo`.
        interval: 95% interval of `nats` from its Monte Carlo error, a normal one; None when exact, or with one draw.
        tokens: number of tokens scored.
        bytes: UTF-8 bytes of the text.
        parts: each token as text and its nats, which add up to `nats`; None where a likelihood is no such sum.
    """

    model: str
    nats: float
    kind: Kind
    likelihood: str
    interval: tuple[float, float] | None
    tokens: int
    bytes: int
    parts: tuple[tuple[str, float], ...] | None

    @property
    def nats_per_token(self) -> float:
        """Nats per token of the model's tokenizer; nan for an empty text."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text, which compares models with different tokenizers; nan for an empty text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def perplexity(self) -> float:
        """Token perplexity, exp(nats per token); inf where that is beyond all floats."""
        return math.exp(self.nats_per_token) if not self.nats_per_token > 709 else math.inf

    def __str__(self) -> str:
        interval = "" if self.interval is None else " [{:.2f}, {:.2f}]".format(*self.interval)
        return (
            f"{self.model}: {_SIGNS[self.kind]}{self.nats:.2f}{interval} nats ({self.likelihood}), "
            f"{self.nats_per_token:.3f} per token, {self.bits_per_byte:.3f} bits per byte, "
            f"{count(self.tokens, 'tokens')}"
        )


class Model:
    """A model to score and generate with. Get one from `ltm.load`.

    Attributes:
        loaded: the model itself, its tokenizer, and what its checkpoint records.
    """

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.loaded.model.parameters())
        return f"<{self.loaded.name}: {self.loaded.info['family']}, {count(parameters, 'parameters')}>"

    def score(self, text: str, *, draws: int | None = None, seed: int = 0) -> Score:
        """Score a text by the model's headline likelihood, in blocks of `block_length` tokens as `ltm-eval` does.

        Args:
            draws: Monte Carlo draws; the model's default when None.
            seed: seed of all noise.

        Raises:
            UserError: the model gives NaN or Inf.
        """
        import torch

        from ltm.data.separated_text import streams
        from ltm.evaluation.batches import BatchScorer
        from ltm.evaluation.likelihoods import gather
        from ltm.evaluation.rows import blocks
        from ltm.nn.left_to_right import ExactModel
        from ltm.rng import seed_of
        from ltm.statistics import NORMAL_95

        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        (ids,) = streams([text], tokenizer)
        rows = list(blocks(ids, model.block_length, record="text", document=0))
        scorer = BatchScorer(model, draws=draws, batch_size=None)
        kept: Any = _Kept()
        records = scorer.score(
            rows, seed=seed_of(seed, "score"), companions=False, cache=kept, advance=lambda rows, tokens: None
        )
        total = gather(records, stream_tokens=len(ids), headline=model.headline())
        parts = None
        if isinstance(model, ExactModel):
            with torch.no_grad():
                values = [
                    model.token_nats(torch.from_numpy(row.tokens.astype("int64"))[None].to(model.device))[0].tolist()
                    for row in rows
                ]
            nats = [-value for block in values for value in block]
            parts = tuple(zip((tokenizer.decode([token]) for token in ids.tolist()), nats, strict=True))
        error = None if not total.mc_variance else NORMAL_95 * math.sqrt(total.mc_variance)
        return Score(
            model=self.loaded.name,
            nats=-float(total) + 0.0,
            kind=total.kind,
            likelihood=total.headline,
            interval=None if error is None else (-float(total) - error, -float(total) + error),
            tokens=len(ids),
            bytes=len(text.encode(errors="surrogatepass")),
            parts=parts,
        )

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Generate a continuation of a prompt, up to EOS; returns the new text without the prompt.

        Args:
            temperature: 0 is greedy.
            seed: the same seed gives the same text.

        Raises:
            UserError: prompt and new tokens do not fit the model, or a number is out of range.
        """
        from ltm.api import Sampling
        from ltm.errors import UserError
        from ltm.evaluation.rows import decoded
        from ltm.rng import SequenceRng, seed_of

        tokenizer = self.loaded.tokenizer
        given = tokenizer.encode(prompt).tolist()
        try:
            sampling = Sampling(temperature=temperature, top_p=top_p, stop_ids=(tokenizer.eos_id,))
            generated = self.loaded.model.generate(
                [given],
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                rng=SequenceRng(seed_of(seed, "generate"), [0]),
            )
        except ValueError as error:
            raise UserError(f"{self.loaded.name}: {error}") from error
        new = [token for token in generated.tokens[0] if token != tokenizer.eos_id]
        return decoded(tokenizer, given, new)[1]


class _Kept(dict[str, Any]):
    """Records in memory, for a text that is scored once."""

    add = dict.update


def load(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
    dtype: str = "float32",
) -> Model:
    """Load a model by name; a `-tiny` preset without weights is trained first, which takes minutes.

    Args:
        name: a preset (`ltm-tiny`), a directory of `ltm-train`, a hub repository, or FAMILY:SOURCE
            (`pretrained:gpt2`).
        checkpoint: weights of a preset; the model store's when None.
        settings: `field=value` of the model's config, such as `posterior.steps=32`.
        device: `cpu`, `cuda` or `cuda:N`; a GPU where there is one when None.
        dtype: dtype of the weights.

    Raises:
        UserError: there is no such model, or it has no weights; says which command trains them.
    """
    import dataclasses

    import torch

    from ltm import model_store
    from ltm.devices import check_dtype, choose_device

    check_dtype(dtype)
    target, weights = choose_device(device), None if checkpoint is None else str(checkpoint)
    place = model_store.trained(name, model_store.locate(name, weights, list(settings)))
    loaded = model_store.load(place, None, list(settings), target, dtype=dtype)
    model = loaded.model.to(device=target, dtype=getattr(torch, dtype)).eval()
    return Model(dataclasses.replace(loaded, model=model))


def evaluate(
    models: Sequence[str], tasks: Sequence[str], *, output: str | Path = "results", **options: Any
) -> list[Result]:
    """Evaluate models on tasks as `ltm-eval` does, and return the results, which are also written to `output`.

    What has a result there already is read and not measured again.

    Args:
        models, tasks: names as `ltm-eval` takes them.
        options: further options of `ltm-eval`, named as on its command line: `draws=16`, `data_dir="data"`.

    Raises:
        UserError: a model, a task, its data or an option is not there or does not fit.
    """
    from ltm.errors import did_you_mean

    known = importlib.import_module("tasks.options")
    for name in options:
        if name not in known.option_names():
            raise did_you_mean("option", name, known.option_names())
    chosen = known.EvalOptions(output=Path(output), **options)
    evaluation = importlib.import_module("tasks.evaluation").Evaluation(list(models), list(tasks), chosen)
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    command = f"ltm.evaluate({list(models)!r}, {list(tasks)!r}, output={str(output)!r}{given})"
    return [done.result for done in evaluation.run(command)]
