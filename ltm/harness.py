"""Any of our language models as a model of lm-eval: `lm_eval --model ltm --model_args pretrained=ltm-tiny`.

Three request types, their answers kept and resumable, each with noise of its own that depends on the seed, the task
and the document alone. lm-eval's own seeds and caches change nothing here.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

# First: a model class made before this import would leave lm-eval without its own models.
import lm_eval.models  # noqa: F401
import torch
from lm_eval.api.model import LM

from ltm import harness_requests as asked
from ltm import model_store
from ltm.config import whole_number
from ltm.data.separated_text import check_round_trip, streams
from ltm.data.tokens.text import CorpusText
from ltm.devices import choose_device
from ltm.errors import UserError
from ltm.evaluation import lm_eval_options, unprefixed
from ltm.evaluation.likelihoods import LikelihoodFloat, gather
from ltm.evaluation.rolling import Text, name_of, score_texts
from ltm.evaluation.rows import Row, blocks, continuation, digest_of, greedy, joined
from ltm.evaluation.runner import Runner
from ltm.latent.base import LatentModel
from ltm.processes import is_lead, local_device
from ltm.progress import count
from ltm.rng import SequenceRng

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from ltm.api import LoadedModel

log = logging.getLogger(__name__)


class HarnessModel(LM):
    """A trained model behind lm-eval's interface.

    Args:
        pretrained: a preset with weights, a checkpoint directory, a hub repository, `FAMILY:SOURCE` for a model made
            elsewhere (pretrained:gpt2), or a `ltm.api.LoadedModel`.
        path: the same, under the name that other backends use.
        checkpoint: a directory of weights for the preset `pretrained`.
        draws: Monte Carlo draws of the headline likelihood; the model's own default when None.
        seed: of all noise.
        device: a wish; `cuda:0`, lm-eval's default, becomes the CPU where there is no GPU.
        batch_size: a number, or `auto`. It changes no result beyond the rounding of floats.
        max_batch_size: the most that `auto` may choose.
        dtype: of the weights while scoring: float32 (also `auto`), bfloat16, float16 or float64.
        settings: `field=value` of the model's config, several as a list or separated by `;`: posterior.steps=32.
        headline_only: leave out the likelihoods beside the headline, which for a latent model cost most of the time.
        limit_blocks: score only so many blocks of each text, for a quick look; such results are marked partial.
        prequential: read whole texts in chunks of so many tokens, each predicted from those before it; models with
            latents. An exact likelihood is the same in chunks, and other bounds have no such reading.
        prefix: `bos` puts BOS before every text; `none` (None, as lm-eval reads it) reads a model made elsewhere as
            `--model hf` does, with what its own tokenizer puts there.

    Arguments of other backends are taken with a note where they would change nothing.

    Raises:
        UserError: an unknown argument, weights that are not there, or a value that does not fit.
    """

    def __init__(
        self,
        pretrained: Any = None,
        *,
        path: str | None = None,
        checkpoint: str | None = None,
        draws: int | str | None = None,
        seed: int | str = 0,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        dtype: str = "float32",
        settings: str | Sequence[str] = (),
        headline_only: bool = False,
        limit_blocks: int | str | None = None,
        prequential: int | str | None = None,
        prefix: str | None = "bos",
        **unknown: Any,
    ):
        super().__init__()
        if not is_lead():  # whose warnings are those of all
            logging.getLogger("ltm").setLevel(logging.ERROR)
        lm_eval_options.check_other_arguments(unknown, inspect.signature(type(self).__init__).parameters)
        if (pretrained is None) == (path is None):
            raise UserError("model_args: expected one of pretrained=NAME_OR_PATH and path=PATH")
        self.headline_only = headline_only
        dtype = lm_eval_options.scoring_dtype(dtype)
        prefix = lm_eval_options.prefix_named(prefix)
        if not isinstance(headline_only, bool):
            raise UserError(f"headline_only: expected true or false, found {headline_only!r}")
        seed = whole_number("seed", seed, least=0)
        draws = None if draws is None else whole_number("draws", draws, least=1)
        rows, most_rows = lm_eval_options.rows_per_batch(batch_size, max_batch_size)
        self.limit_blocks = None if limit_blocks is None else whole_number("limit_blocks", limit_blocks, least=1)
        target = local_device(choose_device(device))
        loaded = model_store.load(path if pretrained is None else pretrained, checkpoint, settings, target, dtype=dtype)
        model = loaded.model.to(device=target, dtype=getattr(torch, dtype)).eval()
        self.loaded = dataclasses.replace(loaded, model=model)
        chunk = None if prequential is None else whole_number("prequential", prequential, least=1)
        self._arguments = {
            "draws": draws,
            "seed": seed,
            "device": str(target),
            "batch_size": rows,
            "max_batch_size": max_batch_size,
            "dtype": dtype,
            "headline_only": headline_only,
            "limit_blocks": self.limit_blocks,
            "prequential": chunk,
            "prefix": prefix,
        }
        self.runner = Runner(
            self.loaded,
            seed=seed,
            draws=draws,
            dtype=dtype,
            batch_size=rows,
            chunk=chunk if isinstance(model, LatentModel) else None,
            unprefixed=model.unprefixed(loaded.directory) if prefix == "none" else None,
        )
        if rows is None:
            self.runner.scorer.batch_size = min(self.runner.scorer.batch_size, most_rows)
        self.reads_no_greedy: set[str] = set()
        self._device = torch.device(target)
        self._shortened: Counter[str] = Counter()
        if chunk is not None and self.runner.chunk is None:
            self._check_exact()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """As lm-eval makes it; `batch_size` and `device` may be among the model arguments and win there.

        A batch size of 1 beside them is lm-eval's own default, and taken as `auto`.
        """
        given = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if str(given.get("batch_size")) == "1":
            del given["batch_size"]
        return cls(**{**given, **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HarnessModel:
        """As `create_from_arg_obj`, from `name=value,name=value`."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def like(self, loaded: LoadedModel | None = None, **changes: Any) -> HarnessModel:
        """Return another model, or this one, under the arguments of this one, except for `changes`."""
        other = type(self)(pretrained=loaded or self.loaded, **{**self._arguments, **changes})
        if loaded is None:
            other.runner.label = self.runner.label
        return other

    def _check_exact(self) -> None:
        name, (kind, _) = next(iter(self.offered.items()))
        if kind != "exact":
            raise UserError(
                f"{self.loaded.name} has no prequential bound: its {name} bounds a whole text and predicts no chunk "
                "from those before it; such bounds are of models with latents (ltm, vae), and exact ones need none"
            )

    @property
    def block_length(self) -> int:
        """Tokens of a block."""
        return self.loaded.model.block_length

    def noise(self, task: str, indices: Sequence[int]) -> SequenceRng:
        """The noise of a task's sequences: block i of document d of a whole text has index d * 2**32 + i."""
        return self.runner.noise(task, indices)

    @cached_property
    def offered(self) -> dict[str, tuple[str, int]]:
        """Kind and draws of every likelihood that whole texts get, headline first; learnt from scoring one token."""
        given = 1 if self.runner.unprefixed else 0
        first = torch.zeros(1, given + 1, dtype=torch.int64, device=self._device)
        reader = self.runner.scorer.model
        headline = reader.headline()
        with torch.no_grad():
            found = reader.log_likelihoods(
                first,
                context=given,
                draws=self.runner.scorer.draws,
                rng=SequenceRng(0, [0]),
                only=headline if self.headline_only else None,
            )
        return {name: (found[name].kind, found[name].draws) for name in sorted(found, key=lambda n: n != headline)}

    def streams(self, texts: Sequence[Text]) -> list[Any]:
        """The tokens of each text that scoring covers: int32 arrays, and the streams on disk of a `CorpusText`."""
        if reader := self.runner.unprefixed:
            return unprefixed.streams(reader, [t.whole() if isinstance(t, CorpusText) else t for t in texts])
        tokenizer = self.loaded.tokenizer
        return [t.tokens(tokenizer) if isinstance(t, CorpusText) else streams([t], tokenizer)[0] for t in texts]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[LikelihoodFloat]:
        """Whole texts: each is tokenised once and cut into blocks of `block_length`, the last one shorter.

        Of a `SeparatedText` the EOS between documents are tokens like others, and scored.
        Every block is scored given BOS alone; the sum stands for the text. No token is scored twice or left out.
        With prefix=none the blocks are the windows of `ltm.evaluation.unprefixed`.
        """
        results: list[Any] = [None] * len(requests)
        for task, numbers in asked.by_task(requests).items():
            texts = [requests[n].args[0] for n in numbers]
            streams = self.streams(texts)
            rows = []
            for n, ids, text in zip(numbers, streams, texts, strict=True):
                # A published tokenizer may put a token of its own before a text, or read a special token in it.
                if not (self.runner.unprefixed or isinstance(text, CorpusText)):
                    check_round_trip(self.loaded.tokenizer, text, ids)
                rows.append((self._blocks(ids, requests[n].doc_id or 0, text), len(ids)))
            found = score_texts(self.runner, task, rows, companions=not self.headline_only)
            for n, value in zip(numbers, found, strict=True):
                results[n] = value
        return results

    def _blocks(self, ids: Any, document: int, text: Text) -> Iterable[Row]:
        name = f"{name_of(text)} document {document}"
        name += " headline" if self.headline_only else ""
        if reader := self.runner.unprefixed:
            return unprefixed.windows(reader, ids.tolist(), record=name, document=document, limit=self.limit_blocks)
        return blocks(ids, self.block_length, record=name, document=document, limit=self.limit_blocks)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[LikelihoodFloat, bool]]:
        """Continuations given contexts, and whether greedy decoding of the context gives just that continuation.

        A context too long is cut on the left. A continuation too long for a block on its own is scored in blocks,
        without context, and is never called greedy. A task in `reads_no_greedy` gets `NotDecoded` in its place.
        """
        results: list[Any] = [None] * len(requests)
        for task, numbers in asked.by_task(requests).items():
            rows = [self._continuation(requests[n]) for n in numbers]
            records = self._score(task, rows, companions=False)
            unread = task in self.reads_no_greedy
            greedy = [lm_eval_options.NotDecoded()] * len(rows) if unread else self._greedy(task, rows)
            for n, own, found, same in zip(numbers, rows, records, greedy, strict=True):
                tokens = sum(len(row.tokens) - row.context for row in own)
                headline = self.loaded.model.headline(own[0].context if own else 0)
                results[n] = gather(found, stream_tokens=tokens, headline=headline), same
        self._say_what_was_shortened()
        return results

    def _continuation(self, request: Instance) -> list[Row]:
        context, text = request.args
        # Spaces belong to the word that follows them.
        space = context[len(context.rstrip()) :]
        context, text = context[: len(context) - len(space)], space + text
        document = request.doc_id or 0
        name = f"continuation {digest_of(context, text)} document {document}"
        if reader := self.runner.unprefixed:
            return unprefixed.pair(reader, context, text, record=name, document=document, shortened=self._shortened)
        whole, given = joined(self.loaded.tokenizer.encode, context, text)
        self._shortened["contexts"] += len(whole) > self.block_length
        return continuation(whole, given, self.block_length, record=name, document=document)

    def _greedy(self, task: str, rows: Sequence[Sequence[Row]]) -> list[bool]:
        prompts = {n: greedy(own[0]) for n, own in enumerate(rows) if len(own) == 1}
        found = dict(zip(prompts, self.runner.generate(task, list(prompts.values())), strict=True))
        return [n in found and found[n] == own[0].tokens[own[0].context :].tolist() for n, own in enumerate(rows)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations up to the first of the stop strings, which is cut off, or of as many tokens as are asked for.

        Prompts that do not fit beside the new tokens are cut on the left. Where both are long, half of a block is
        kept for the prompt and fewer new tokens are made. Repeats of a request that samples get different draws.
        """
        results: list[Any] = [None] * len(requests)
        tokenizer = self.loaded.tokenizer
        for task, numbers in asked.by_task(requests).items():
            own = [requests[n] for n in numbers]
            wishes, prompts = asked.generations(
                own, self._encode_prompt, tokenizer.eos_id, self.block_length, self._shortened
            )
            for n, wish, new in zip(numbers, wishes, self.runner.generate(task, prompts), strict=True):
                results[n] = wish.cut(tokenizer.decode(new))
        self._say_what_was_shortened()
        return results

    def _encode_prompt(self, text: str) -> list[int]:
        if reader := self.runner.unprefixed:
            return reader.encode(text) or [reader.prefix_id]
        return self.loaded.tokenizer.encode(text).tolist()

    def _score(self, task: str, rows: Sequence[Sequence[Row]], *, companions: bool) -> list[list[Any]]:
        records = iter(self.runner.score(task, [row for own in rows for row in own], companions=companions))
        return [[next(records) for _ in own] for own in rows]

    def _say_what_was_shortened(self) -> None:
        for what, cut in self._shortened.items():
            if cut:
                log.warning("%s shortened to fit blocks of %s", count(cut, what), count(self.block_length, "tokens"))
        self._shortened.clear()

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results."""
        (headline, (kind, draws)), *companions = self.offered.items()
        return {
            "model_name": self.loaded.name + (" prefix=none" if self.runner.unprefixed else ""),
            "model_family": self.loaded.info["family"],
            "model_num_parameters": sum(p.numel() for p in self.loaded.model.parameters()),
            "model_dtype": self.runner.dtype,
            **({} if (matmul := self.loaded.model.inference_matmul) is None else {"inference_matmul": matmul}),
            "likelihood": {"name": headline, "kind": kind, "draws": draws},
            "companions": {name: {"kind": kind, "draws": draws} for name, (kind, draws) in companions},
            "config_digest": self.loaded.info["config_digest"],
            "weights_digest": self.loaded.info["weights_digest"],
            "tokenizer_fingerprint": self.loaded.tokenizer.fingerprint,
            "block_length": self.block_length,
            "noise_seed": self.runner.seed,
            **({} if self.runner.chunk is None else {"prequential_chunk": self.runner.chunk}),
            **({} if self.runner.unprefixed is None else {"prefix": "none"}),
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused: `--use_cache` finds answers by their prompt alone, whatever model, seed or document they are of."""
        raise UserError(
            f"--use_cache would take another model's answers for those of {self.loaded.name}, since it finds them by "
            f"their prompt alone; leave it out: answers are kept in {self.runner.cache_directory} already, by weights, "
            "settings and seed, and a run that was stopped continues there"
        )

    @property
    def tokenizer_name(self) -> str:
        """Refused: lm-eval asks for it to apply a chat template."""
        raise lm_eval_options.refuse_chat(self.loaded.name)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Refused: these models know no chat."""
        raise lm_eval_options.refuse_chat(self.loaded.name)

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Refused: these models know no chat."""
        raise lm_eval_options.refuse_chat(self.loaded.name)
