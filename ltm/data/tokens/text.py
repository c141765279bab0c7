"""The text of a split as something to score: it is tokenised on disk, and never held as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from ltm.data.split import Split
from ltm.data.tokens.building import token_stream
from ltm.data.tokens.stream import TokenStream
from ltm.files import home
from ltm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class CorpusText:
    """The documents of a split one after the other, detokenised.

    Attributes:
        separated: tokenise documents one by one, with EOS between any two, as in training; else all as one text.
    """

    split: Split
    separated: bool = False

    def tokens(self, tokenizer: Tokenizer) -> TokenStream:
        """Return the tokens, which give the text back; they are made on first use and kept in `$LTM_HOME/tokens`.

        Raises:
            UserError: see `ltm.data.tokens.building.token_stream`.
        """
        return token_stream(
            self.split, tokenizer, separated=self.separated, joined=not self.separated, cache_dir=home() / "tokens"
        )

    def whole(self) -> str:
        """Return the text in memory, for tokenizers that are not ours."""
        return "".join(self.split.iter_texts())
