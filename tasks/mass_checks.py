"""Checks that add up probability: what calls itself a likelihood may share out no more than 1 among all that there is.

The first three are of a miniature, a network so small that every text can be scored; its settings are the model's. Each
takes the miniature; `next_token_mass` takes the model itself. Shapes: N texts, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltm.api import LanguageModel, LikelihoodEstimate
from ltm.latent_model import LatentModel
from ltm.rng import SequenceRng
from tasks.evidence import STANDARD_ERRORS, CheckResult

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

TOKENS, LENGTH = 3, 4
"""Of the miniature; a family may need a length that is a little more."""
UPDATES, BATCH, LEARNING_RATE = 150, 32, 0.02
FAST_STEPS, TRAINED_STEPS = 200, 16
"""The least to score with, where errors show, and the most to train with, for time."""
DRAWS, FEW_DRAWS, ROOM = 512, 32, 0.05
"""Of every likelihood few; of the headline many, where few would let it exceed 1 by more than `ROOM` unnoticed."""
TALKATIVE = {"kl_warmup": 1.0, "kl_weight_start": 0.5}
"""How the miniature of a latent model is trained, whatever the model: its KL at half price, so that z says something,
and not so much that no Gaussian is near the true posterior."""
ENCODER_UPDATES = 60
"""Of what infers z, at the full price, while the decoder is held still; for tight bounds, which can hide little."""
FULL_VOCABULARY, SUBSET = 2048, 96
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of a total probability that must be 1; 0.02 in narrower dtypes."""


def miniature(model: LanguageModel, trained: Any = None, *, seed: int = 0) -> LanguageModel:
    """A network for `TOKENS` tokens under the model's settings, briefly trained in float64; many fast steps to score.

    Its texts are mostly one token over and over, so that a latent has something to say and a window of two has not seen
    it all: a divergence left out, a token leaked or a weight forgotten then shows as probability.

    Args:
        trained: the config that the model was trained under, where it is scored with another.
    """
    cls, shape = type(model), {"vocab_size": TOKENS + 1, "block_length": LENGTH, "width": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = cls(_talkative(cls.twin_config(trained or model.config, **shape))).double()
    generator = torch.Generator().manual_seed(seed)
    batches = ((_repetitive(generator, found.block_length), update) for update in itertools.count())
    if cls.learns_by_counting:
        for tokens_BL, _ in itertools.islice(batches, UPDATES):
            found.count(tokens_BL)
        found.finish()
        return _scored(found, cls.twin_config(model.config, **shape))

    def train(updates: int, parameters: Sequence[Tensor], progress: float) -> None:
        adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        for tokens_BL, update in itertools.islice(batches, updates):
            adam.zero_grad()
            rng = SequenceRng(seed, range(update * BATCH, (update + 1) * BATCH))
            found.training_loss(tokens_BL, rng=rng, progress=progress).value.backward()
            adam.step()

    train(UPDATES, list(found.parameters()), 0.0)
    inferring = [value for name, value in found.named_parameters() if not name.startswith("decoder.")]
    if isinstance(found, LatentModel) and inferring:
        train(ENCODER_UPDATES, inferring, 1.0)
    return _scored(found, cls.twin_config(model.config, **shape))


def _talkative(config: Any) -> Any:
    from ltm.config import setting_names, with_settings

    known = setting_names(config)
    settings = [f"{name}={value}" for name, value in TALKATIVE.items() if name in known]
    if "posterior.steps" in known:
        settings.append(f"posterior.steps={min(TRAINED_STEPS, config.posterior.steps)}")
    return with_settings(config, settings)


def _repetitive(generator: torch.Generator, length: int) -> Tensor:
    first = torch.randint(TOKENS, (BATCH, 1), generator=generator)
    others = torch.randint(TOKENS, (BATCH, length), generator=generator)
    return torch.where(torch.rand(BATCH, length, generator=generator) < 0.8, first, others)


def _scored(trained: LanguageModel, config: Any) -> LanguageModel:
    from ltm.config import setting_names, with_settings

    if "posterior.steps" in setting_names(config):
        config = with_settings(config, [f"posterior.steps={max(FAST_STEPS, config.posterior.steps)}"])
    weights = trained.state_dict()
    found = type(trained)(config)
    found.allocate({name: tuple(value.shape) for name, value in weights.items()})
    found.double().load_state_dict(weights)
    return found.eval().requires_grad_(False)


def total_mass(mini: LanguageModel, *, name: str = "total_mass") -> list[CheckResult]:
    """The sum of exp(claim) over every text there is: at most 1, and 1 if the claim is exact.

    It shows every error that raises the sum, whatever it is: it proves the claim of this miniature, up to the error
    stated. It cannot show an error that longer texts, a larger vocabulary or other weights would have to bring out.
    """
    texts_NL, headline = _every_text(mini.block_length), mini.headline()
    noise = SequenceRng(1, range(len(texts_NL)))
    results = []
    for which, estimate in mini.log_likelihoods(texts_NL, rng=noise, draws=FEW_DRAWS).items():
        result = _mass(name, which, estimate)
        if which == headline and result.limit > 1 + ROOM:
            more = mini.log_likelihoods(texts_NL, rng=noise, draws=DRAWS, only=which)
            result = _mass(name, which, more[which])
        results.append(result)
    return results


def continuation_mass(mini: LanguageModel) -> list[CheckResult]:
    """The same of all continuations of a context, given it: at most 1 for each; the largest of all contexts is shown.

    Continuations of a context share their noise, since a proper predictive distribution has all of it for each noise;
    not those of averages, whose errors would then add up.
    """
    context = mini.block_length // 2
    texts_NL = _every_text(mini.block_length)
    group = TOKENS ** (mini.block_length - context)
    size = 1 if _averages(mini, context) else group
    noise = SequenceRng(1, [row // size for row in range(len(texts_NL))])
    found = mini.log_likelihoods(texts_NL, context=context, rng=noise, draws=FEW_DRAWS)
    results = []
    for which, estimate in found.items():
        parts = (_rows(estimate, slice(first, first + group)) for first in range(0, len(texts_NL), group))
        each = [_mass("continuation_mass", which, part) for part in parts]
        results.append(max(each, key=_beyond))
    return results


def prequential_mass(mini: LanguageModel) -> list[CheckResult]:
    """As `total_mass`, of a latent model that reads a text in two chunks; nothing of others."""
    from ltm.prequential import Prequential

    if not isinstance(mini, LatentModel):
        return []
    reader, texts_NL = Prequential(mini, -(-mini.block_length // 2)), _every_text(mini.block_length)
    found = reader.log_likelihoods(texts_NL, rng=SequenceRng(1, range(len(texts_NL))), draws=FEW_DRAWS)
    return [_mass("prequential_mass", which, estimate) for which, estimate in found.items()]


def blank_mass(mini: LanguageModel) -> list[CheckResult]:
    """As `total_mass`, of the network with all weights zero, whose predictions are uniform and whose bounds are tight.

    A bound can hide an error within its own looseness. Here there is none of it, so that a piece of an integral or a
    weight that is missing shows however small. Of what a latent says of a text it shows nothing: there is none.
    """
    blank = copy.deepcopy(mini)
    for parameter in blank.parameters():
        if parameter.is_floating_point():
            parameter.zero_()
    return total_mass(blank, name="blank_mass")


def next_token_mass(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Of the model as it is, the sum of exp(claim) over next tokens, given nothing and given starts of real text.

    At most 1, and 1 if the claim is exact. In vocabularies of more than `FULL_VOCABULARY` tokens, and for bounds, only
    the true next token, the commonest of this text and some at random are asked for; less of them may be missed. A
    predictor that has seen what it predicts gives nearly 1 to each. It shows nothing of how claims of many tokens are
    put together.

    Args:
        tokens: of real text, at least one.
    """
    reader, device = model.loaded.model, model.device
    exact = all(kind == "exact" for kind, _ in model.offered.values())
    outputs = reader.vocab_size - 1
    everything = exact and outputs <= FULL_VOCABULARY
    weights = (p.dtype for p in reader.parameters() if p.is_floating_point())
    slip = TOLERANCES.get(next(weights, torch.float64), 0.02)  # what has none, such as counts, is exact
    worst: dict[str, CheckResult] = {}
    for length in _contexts(len(tokens), reader.block_length):
        asked = list(range(outputs)) if everything else _some(tokens, length, outputs)
        rows_NL = torch.tensor([[*tokens[:length], token] for token in asked], device=device)
        found: dict[str, LikelihoodEstimate] = {}
        averages = _averages(reader, length)
        for rows in rows_NL.split(max(1, 16384 // (length + 1))):
            # One noise for all, as one predictor would have; not for averages, whose errors would then add up.
            before = 0 if not found else len(next(iter(found.values())).nats_B)
            own = range(before, before + len(rows)) if averages else [length] * len(rows)
            noise = SequenceRng(model.answers.seed, own)
            with torch.no_grad():
                part = reader.log_likelihoods(rows, context=length, rng=noise, draws=2 if length else None)
            found = {which: _joined(found.get(which), estimate) for which, estimate in part.items()}
        for which, estimate in found.items():
            result = _mass(
                "next_token_mass", which, estimate, whole=everything, slip=slip, after=f"after {length} tokens"
            )
            if which not in worst or _beyond(result) > _beyond(worst[which]):
                worst[which] = result
    return list(worst.values())


def _contexts(available: int, block_length: int) -> list[int]:
    most = min(available, block_length) - 1
    return sorted({min(length, most) for length in (0, 1, 5, 24)})


def _some(tokens: Sequence[int], at: int, outputs: int) -> list[int]:
    counts = torch.tensor(tokens).bincount(minlength=outputs)
    common = counts.argsort(descending=True, stable=True)[: SUBSET // 2].tolist()
    random = torch.randperm(outputs, generator=torch.Generator().manual_seed(at))[: SUBSET // 2].tolist()
    return list(dict.fromkeys([tokens[at], *common, *random]))


def _averages(reader: LanguageModel, context: int) -> bool:
    """Whether continuations of so many tokens get a mean over draws, and not the logarithm of one."""
    one = torch.zeros(1, context + 1, dtype=torch.int64, device=reader.device)
    with torch.no_grad():
        found = reader.log_likelihoods(one, context=context, rng=SequenceRng(0, [0]), draws=2)
    return any(estimate.averaged for estimate in found.values())


def _every_text(length: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(TOKENS), repeat=length)))


def _rows(estimate: LikelihoodEstimate, rows: slice) -> LikelihoodEstimate:
    variance_B = None if estimate.mc_var_B is None else estimate.mc_var_B[rows]
    return dataclasses.replace(estimate, nats_B=estimate.nats_B[rows], mc_var_B=variance_B)


def _joined(before: LikelihoodEstimate | None, new: LikelihoodEstimate) -> LikelihoodEstimate:
    if before is None:
        return new
    known = before.mc_var_B is not None and new.mc_var_B is not None
    variance_B = torch.cat([before.mc_var_B, new.mc_var_B]) if known else None  # type: ignore[list-item]
    return dataclasses.replace(new, nats_B=torch.cat([before.nats_B, new.nats_B]), mc_var_B=variance_B)


def _mass(
    name: str, likelihood: str, estimate: LikelihoodEstimate, *, whole: bool = True, slip: float = 1e-6, after: str = ""
) -> CheckResult:
    """The sum of exp(claim), and whether it may be that much; `whole` when no part of what there is was left out."""
    p_B = estimate.nats_B.double().exp()
    variance_B = torch.zeros_like(p_B) if estimate.mc_var_B is None else estimate.mc_var_B.double()
    mass, error = float(p_B.sum()), float((p_B.square() * variance_B).sum().sqrt())
    two_sided = estimate.kind == "exact" and whole
    limit = 1 + slip + STANDARD_ERRORS * error
    passed = mass <= limit and not (two_sided and mass < 1 - slip)
    beside = [after] if after else []
    if error > 0:
        beside.append(f"standard error {error:.2g}")
    if two_sided:
        beside.append("exact: it must be 1")
    of = f"{len(p_B):,} {'next tokens' if after else 'texts'}"
    detail = f"{of} share {mass:.6g}, at most {limit:.6g}{''.join(f'; {part}' for part in beside)}"
    return CheckResult(
        name=name, likelihood=likelihood, passed=passed and math.isfinite(mass), value=mass, limit=limit, detail=detail
    )


def _beyond(result: CheckResult) -> float:
    """How bad a mass is: failures first, then by what it exceeds its limit, or is from 1."""
    off = abs(result.value - 1) if not result.passed else result.value - result.limit
    return math.inf if math.isnan(off) else off + (0 if result.passed else 1e6)
