"""Random GPT-2, GPT-NeoX and Llama networks on disk as published ones are, with tokenizers that add a BOS or do not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ltm import tokenizer
from ltm.tokenizer import EOS
from tests.support.miniature_runs import text
from tests.support.small_gpt2 import save_network

POSITIONS = 24
BOS = "<s>"


def save_published(directory: Path, architecture: str, *, bos: bool) -> Path:
    """Save a network of that architecture, `gpt2`, `gpt_neox` or `llama`, and its tokenizer.

    Args:
        bos: the tokenizer puts a BOS of its own before every text; otherwise EOS is all that could open one.
    """
    import transformers

    ids = 281
    common: dict[str, Any] = {"vocab_size": ids + 3, "eos_token_id": 279, "bos_token_id": 280 if bos else 279}
    shape = {
        "gpt2": lambda: transformers.GPT2Config(n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2, **common),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(
            max_position_embeddings=POSITIONS, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, **common,
        ),
        "llama": lambda: transformers.LlamaConfig(
            max_position_embeddings=POSITIONS, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, **common,
        ),
    }[architecture]()  # fmt: skip
    save_network(directory, shape)
    _save_tokenizer(directory, bos=bos)
    return directory


def _save_tokenizer(directory: Path, *, bos: bool) -> None:
    import tokenizers
    import transformers
    from tokenizers.processors import TemplateProcessing

    tokenizer.build("bpe-280", documents=text(400)).save(directory)
    own = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    own.add_special_tokens([EOS, BOS])
    if bos:
        own.post_processor = TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, own.token_to_id(BOS))]
        )
    special = {"eos_token": EOS, **({"bos_token": BOS} if bos else {})}
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **special).save_pretrained(directory)


def hf_backend(directory: Path) -> Any:
    """The weights there as `lm_eval --model hf` scores them, in float32 on the CPU."""
    import transformers

    with _accelerate():
        from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(directory).eval(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
        batch_size=4,
    )


@contextmanager
def _accelerate() -> Iterator[None]:
    """The names that lm-eval's `hf` backend imports from the accelerate package; one device has no use for them."""
    names: dict[str, tuple[str, ...]] = {
        "accelerate": ("Accelerator", "InitProcessGroupKwargs", "find_executable_batch_size")
    }
    names["accelerate.utils"] = ("get_max_memory",)
    absent = importlib.util.find_spec("accelerate") is None
    for module, members in names.items() if absent else ():
        sys.modules[module] = ModuleType(module)
        vars(sys.modules[module]).update(dict.fromkeys(members, object))
    try:
        yield
    finally:
        for module in names if absent else ():
            del sys.modules[module]
