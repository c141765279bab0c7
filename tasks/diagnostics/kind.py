"""Diagnostics of latent models: how much z is used, what more inference and latents gain, and what inference costs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ltm import statistics
from ltm.errors import UserError
from ltm.progress import count
from ltm.result import Identity, Interval, Metric
from tasks import results
from tasks.diagnostics import figure, gap
from tasks.kinds import Column, Measurement
from tasks.likelihood.perplexity_kind import Perplexity

if TYPE_CHECKING:
    import torch

    from ltm.harness import HarnessModel
    from ltm.latent.base import LatentModel
    from ltm.latent.posterior import Posterior
    from tasks.diagnostics.measures import Point

STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Fast steps of the curve; the model's own number is added."""
REFINEMENT_STEPS = (0, 1, 4, 16)
"""Fast steps of the curve of a model with an encoder, whose q they refine: it starts close to where they end."""


class Diagnostics(Perplexity):
    """Diagnostics of the posteriors of a split's blocks."""

    items = "blocks"
    columns: ClassVar[Sequence[Column]] = (
        Column(metric="kl_per_token", header="KL/token", form=".4f"),
        Column(metric="active_units", header="Active units", form=".0f"),
        Column(metric="units", header="of", form=".0f"),
        Column(metric="mutual_information", header="I(x; z), nats per text", form=".3f", sign=True),
        Column(metric="inference_gap_nats_per_token", header="Inference gap/token", form=".4f", sign=True),
    )

    def identity(self, model: HarnessModel) -> Identity:
        """Return the identity of a perplexity, with the settings of the YAML file.

        Raises:
            UserError: the model has no Gaussian q(z|x), or the text too few blocks.
        """
        inner, whole = gaussian_model(model), super().identity(model)
        settings = self.entry.settings["metadata"]
        available = self.stream_tokens(model) // model.block_length
        blocks = min(settings["blocks"], available, model.limit_blocks or available)
        if blocks < 2:
            raise UserError(
                f"{self.entry.name}: expected at least 2 full blocks of {count(model.block_length, 'tokens')}, "
                f"found {blocks}; what varies over texts needs several (--limit-blocks 2 or more, or a longer text)"
            )
        scoring = {
            **whole.scoring,
            "blocks": blocks,
            "tokens": blocks * model.block_length,
            "curve_blocks": min(settings["curve_blocks"], blocks),
            "draws": model.runner.scorer.draws or settings["draws"],
            "importance_draws": settings["importance_draws"],
            "upper_draws": settings["upper_draws"],
            "steps": _steps(inner),
            "own_steps": own_steps(inner),
            "latents": _latents(inner),
        }
        del scoring["likelihoods"]
        return dataclasses.replace(whole, scoring=scoring)

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Measure posteriors of blocks spread evenly over the text, curves on fewer blocks, and an interpolation.

        All posteriors for the statistics are inferred under the same noise, so that they differ only by their texts,
        not by the noise of a fit.
        """
        from ltm.rng import SequenceRng
        from tasks.diagnostics import measures

        started, name = time.perf_counter(), self.entry.name
        scoring, inner, size = identity.scoring, gaussian_model(model), model.runner.scorer.batch_size
        tokens_NL, indices = self._blocks(model, scoring["blocks"])
        rng = model.noise(name, indices)
        q = measures.posterior(inner, tokens_NL, SequenceRng(rng.seed, [0] * len(indices)), size)
        information_N = measures.mutual_information(q, rng, draws=scoring["draws"])
        kl_N = q.kl().flatten(1).sum(1).cpu()
        length = tokens_NL.shape[1]

        few = slice(0, len(tokens_NL), math.ceil(len(tokens_NL) / scoring["curve_blocks"]))
        few_rng = rng.select(range(len(tokens_NL))[few])
        curves = {
            by: measures.curve(
                inner,
                tokens_NL[few],
                few_rng,
                size,
                scoring[by],
                by=by,
                draws=scoring["draws"],
                importance_draws=scoring["importance_draws"],
                upper_draws=scoring["upper_draws"] if by == "steps" else None,
            )
            for by in ("steps", "latents")
        }
        encoder = inner.config.fast_steps is None
        found = gap.measured(curves["steps"], length, own=scoring["own_steps"], encoder=encoder)
        lines = _between(inner, q, model, indices)
        records = [
            {"part": "posterior", "block": i, "tokens": length, "kl": kl, "mutual_information": information}
            for i, kl, information in zip(indices, kl_N.tolist(), information_N.tolist(), strict=True)
        ]
        records += [_curve_record(by, p, few_rng.indices) for by, points in curves.items() for p in points]
        records += lines
        _check_finite(name, records)
        drawn = figure.draw(
            curves,
            length,
            own=scoring["own_steps"],
            encoder=encoder,
            title=f"{model.loaded.name} on {name}",
            key=identity.key,
            output=self.options.output,
        )
        return Measurement(
            metrics=(*_metrics(q, kl_N, information_N, length), *gap.metrics(found)),
            records=records,
            data=results.data(self.split),
            seconds=time.perf_counter() - started,
            tokens=scoring["tokens"],
            complete=model.limit_blocks is None or model.limit_blocks >= self.entry.settings["metadata"]["blocks"],
            notes=(*_tables(curves, length, encoder=encoder), gap.answer(found), _interpolation_note(lines), drawn),
        )

    def _blocks(self, model: HarnessModel, count: int) -> tuple[torch.Tensor, list[int]]:
        """Return `count` full blocks, spread evenly over the text, and their indices in it."""
        import torch

        length, (stream,) = model.block_length, model.streams([self.text])
        whole = len(stream) // length
        indices = [n * whole // count for n in range(count)]
        rows = [torch.tensor(stream[i * length : (i + 1) * length].astype("int64")) for i in indices]
        return torch.stack(rows).to(model.device), indices


def gaussian_model(model: HarnessModel) -> LatentModel:
    """Return the model, checked to have a Gaussian q(z|x).

    Raises:
        UserError: it has none.
    """
    from ltm.latent.base import LatentModel

    inner, name = model.loaded.model, model.loaded.name
    if not isinstance(inner, LatentModel):
        raise UserError(f"{name} has no latents: diagnostics are for models that infer z from a text (ltm, vae)")
    if not inner.gaussian_posterior:
        raise UserError(f"{name} infers z without a Gaussian q(z|x), which diagnostics need")
    return inner


def _steps(model: LatentModel) -> list[int]:
    configured = model.config.fast_steps
    return [*REFINEMENT_STEPS] if configured is None else sorted({*STEPS, configured})


def own_steps(model: LatentModel) -> int:
    """Return the number of steps on the curve at which q is the model's own: 0 for an encoder's, before refinement."""
    return model.config.fast_steps or 0


def _latents(model: LatentModel) -> list[int]:
    from tasks.diagnostics.measures import doublings

    return doublings(model.config.latents)


def _metrics(q: Posterior, kl_N: torch.Tensor, information_N: torch.Tensor, length: int) -> tuple[Metric, ...]:
    from tasks.diagnostics import measures

    n = len(kl_N)
    kl = statistics.nats_total((-kl_N).numpy(), [length] * n).per_token()
    error = float(information_N.std()) / math.sqrt(n)
    common: dict[str, Any] = {"likelihood": None, "headline": False, "n": n}
    units = q.mean[0].numel()
    active = measures.active_units(q.mean)
    return (
        Metric(
            name="mutual_information",
            unit="text",
            value=float(information_N.mean()),
            kind="estimate",
            direction="higher",
            stderr_data=error,
            **{**common, "headline": True},
        ),
        Metric(
            name="kl_per_token",
            unit="token",
            value=kl.value,
            kind="exact",
            stderr_data=kl.stderr_data,
            ci95=kl.ci95 and Interval(low=kl.ci95[0], high=kl.ci95[1], method=kl.method),
            direction="higher",
            **common,
        ),
        Metric(name="active_units", unit="model", value=active, kind="exact", direction="higher", **common),
        Metric(name="units", unit="model", value=units, kind="exact", direction="higher", **common),
    )


def _curve_record(by: str, p: Point, indices: Sequence[int]) -> dict[str, Any]:
    return {
        "part": f"bounds by {by}",
        by: p.setting,
        "blocks": list(indices),
        "elbo": p.elbo_N.tolist(),
        "importance_bound": p.importance_N.tolist(),
        **_other_side(p),
        "elbo_flops_per_token": p.elbo_flops,
        "importance_bound_flops_per_token": p.importance_flops,
    }


def _other_side(p: Point) -> dict[str, Any]:
    if p.upper_N is None:
        return {}
    kind = "upper_bound" if p.trusted else "estimate"
    weights = {name: values_N.tolist() for name, values_N in p.reliability.items()}
    return {"tube_upper_bound": p.upper_N.tolist(), "tube_upper_bound_kind": kind, **weights}


def _between(model: LatentModel, q: Posterior, harness: HarnessModel, indices: Sequence[int]) -> list[dict[str, Any]]:
    import torch

    from tasks.diagnostics.measures import interpolation

    points = 5
    ends, tokens = torch.stack([q.mean[0], q.mean[-1]]), min(32, model.block_length)
    texts = interpolation(model, ends, points=points, tokens=tokens)
    return [
        {
            "part": "interpolation",
            "blocks": [indices[0], indices[-1]],
            "weight": n / (points - 1),
            "text": harness.loaded.tokenizer.decode(ids),
        }
        for n, ids in enumerate(texts)
    ]


def _check_finite(task: str, records: Sequence[dict[str, Any]]) -> None:
    for record in records:
        for name, value in record.items():
            numbers = value if isinstance(value, list) else [value]
            if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
                raise UserError(f"{task}: {name} is not finite ({record['part']}); are the weights sound? No result")


def _tables(curves: dict[str, list[Point]], length: int, *, encoder: bool) -> list[str]:
    tables = []
    for by, points in curves.items():
        lines = [f"bounds by {by}, nats per token (± standard error over {len(points[0].elbo_N)} blocks):"]
        if encoder and by == "steps":
            lines.append("  0 steps are the encoder's q; more steps refine it on the same decoder")
        header, above = f"  {by:>7}  {'ELBO':>18}  {'importance':>18}", by == "steps"
        lines.append(f"{header}  {'from above':>18}  {'FLOPs/token':>11}" if above else header)
        for p in points:
            line = f"  {p.setting:>7}  " + "  ".join(
                f"≤ {_nats(x_N, length):>16}" for x_N in (p.elbo_N, p.importance_N)
            )
            if p.upper_N is not None:
                line += f"  {'≥' if p.trusted else '~'} {_nats(p.upper_N, length):>16}"
            lines.append(line if p.elbo_flops is None else f"{line}  {p.elbo_flops:>11.2e}")
        tables.append("\n".join(lines))
    return tables


def _nats(nats_N: torch.Tensor, length: int) -> str:
    per_token_N = -nats_N / length
    mean, error = float(per_token_N.mean()), float(per_token_N.std()) / math.sqrt(len(per_token_N))
    return f"{mean:{gap.form(mean)}} ± {error:{gap.form(mean)}}"


def _interpolation_note(records: Sequence[dict[str, Any]]) -> str:
    first, last = records[0]["blocks"]
    lines = [f"greedy texts between the posterior means of blocks {first} and {last}:"]
    return "\n".join([*lines, *(f"  {record['weight']:.2f}: {record['text']!r}" for record in records)])
