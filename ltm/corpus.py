"""Corpora: documents with exact byte and word counts and a fingerprint, by name and split.

A name is looked up among the embedded corpora (entry points `ltm.corpora`), then in a local directory, then on the
Hugging Face hub for the corpora of `ltm.corpus_table`.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm import corpus_files, hub, registry
from ltm.corpus_table import KNOWN, HubSource, KnownCorpus, Unit
from ltm.detokenize import detokenizer as detokenizer_named
from ltm.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One split of a corpus. Make one with `Split.of`, which counts and fingerprints.

    Attributes:
        documents: raw text, in order.
        unit: what a document is; lines carry their line end, and sequences are texts of one length with nothing
            between them.
        bytes, words: of the raw text: UTF-8 bytes, and runs of anything but white space within a document.
        detokenizer: name of what `texts` applies; None when it changes nothing.
        fingerprint: sha256 of content, document boundaries and detokeniser; the same wherever the text came from.
        source: where that was, ready for JSON; no absolute path.
    """

    corpus: str
    split: str
    documents: Sequence[str]
    unit: Unit
    bytes: int
    words: int
    detokenizer: str | None
    fingerprint: str
    source: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        corpus: str,
        split: str,
        documents: Sequence[str],
        *,
        unit: Unit,
        source: Mapping[str, Any],
        detokenizer: str | None = None,
        edition: str = "",
    ) -> Split:
        """A split from its documents; `edition` is what else tells this text apart, such as a version.

        Raises:
            UserError: there is no text.
        """
        rules = f"{detokenizer} {detokenizer_named(detokenizer).version}" if detokenizer else ""
        content = hashlib.sha256(repr(("split 1", rules, edition)).encode())
        total = words = 0
        for document in documents:
            encoded = document.encode()
            content.update(len(encoded).to_bytes(8, "little") + encoded)
            total += len(encoded)
            words += len(document.split())
        if not words:
            raise UserError(f"{corpus}/{split}: no text in {len(documents)} documents ({_place(source)})")
        return cls(
            corpus=corpus,
            split=split,
            documents=documents,
            unit=unit,
            bytes=total,
            words=words,
            detokenizer=detokenizer,
            fingerprint=content.hexdigest(),
            source=source,
        )

    def iter_texts(self) -> Iterator[str]:
        """The documents as models see them, detokenised, one at a time."""
        if self.detokenizer is None:
            return iter(self.documents)
        return map(detokenizer_named(self.detokenizer), self.documents)

    def texts(self) -> list[str]:
        """The documents as models see them, detokenised."""
        return list(self.iter_texts())


def load(corpus: str, split: str, *, data_dir: Path | None = None) -> Split:
    """A split by name; `data_dir` is the local directory of corpora, $LTM_DATA_DIR when None.

    A known source takes settings after its name: `topics:length=64,words=32` (`ltm.known_source`).

    Raises:
        UserError: unknown corpus or split, no way to its text, or text that cannot be read; says what mends it.
    """
    given, (corpus, colon, settings) = corpus, corpus.partition(":")
    for kind, name in (("corpus", corpus), ("split", split)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{kind} name {name!r}: expected letters, digits, '.', '_' and '-', and no path")
    embedded = registry.corpus_factory(corpus) if corpus in registry.names(registry.CORPORA) else None
    if isinstance(embedded, type):
        from ltm.known_source import from_settings  # which needs torch

        return from_settings(given).split(split)
    if colon and (embedded or corpus in available(data_dir)):
        raise UserError(f"corpus {corpus} has no settings, found {settings!r}; give its name alone")
    if embedded:
        return embedded(split)
    known = KNOWN.get(corpus, KnownCorpus())
    directory = corpus_files.data_directory(data_dir)
    if directory and (file := corpus_files.find(directory, corpus, split)):
        documents, unit = corpus_files.read(file, known)
        source: dict[str, Any] = {"kind": "local", "file": file.relative_to(directory).as_posix()}
    elif known.hub and split in known.hub.files:
        documents, source = _from_hub(corpus, split, known, known.hub, directory)
        unit = known.unit
    else:
        raise _unknown(corpus, split, directory)
    return Split.of(corpus, split, documents, unit=unit, detokenizer=known.detokenizer, source=source)


def load_file(file: Path) -> Split:
    """All of a local .txt or .jsonl file, plain or packed, as the split `all` of a corpus `text_<stem>`.

    Documents are lines of a .txt file and rows of a .jsonl file, as in a directory of corpora; nothing is detokenised.

    Raises:
        UserError: no such file, another kind of file, no text in it, or text that cannot be read.
    """
    stem = corpus_files.stem(file)
    documents, unit = corpus_files.read(file, KnownCorpus())
    return Split.of(f"text_{stem}", "all", documents, unit=unit, source={"kind": "file", "file": file.name})


def available(data_dir: Path | None = None) -> dict[str, list[str]]:
    """Corpora by name: local and hub ones with their splits, embedded ones with none, since only they know theirs."""
    directory = corpus_files.data_directory(data_dir)
    found = corpus_files.corpora(directory) if directory else {}
    for name, known in KNOWN.items():
        if known.hub:
            found[name] = sorted({*found.get(name, ()), *known.hub.files})
    return found | {name: [] for name in registry.names(registry.CORPORA)}


def _unknown(corpus: str, split: str, directory: Path | None) -> UserError:
    known = available(directory)
    if corpus in known:
        error = did_you_mean(f"split of {corpus}", split, known[corpus])
    else:
        error = did_you_mean("corpus", corpus, known)
    return UserError(f"{error}; {_looked_for(corpus, split, directory)}")


def _looked_for(corpus: str, split: str, directory: Path | None) -> str:
    if directory is None:
        return f"no local directory is given: put {corpus_files.names(split)} at DIR/{corpus}/ and set LTM_DATA_DIR=DIR"
    there = corpus_files.corpora(directory).get(corpus)
    found = (
        f", which has {' and '.join(there)} (another split is never taken for it: name its file so)" if there else ""
    )
    return f"looked for {corpus_files.names(split)} in {directory / corpus}{found}"


def _from_hub(
    corpus: str, split: str, known: KnownCorpus, source: HubSource, directory: Path | None
) -> tuple[list[str], dict[str, Any]]:
    pattern = source.files[split]
    try:
        found = hub.fetch(source.repository, "dataset", (pattern,), source.revision)
    except hub.HubError as error:
        raise UserError(
            f"{corpus}/{split} is not here: {_looked_for(corpus, split, directory)}; "
            f"the hub data set {source.repository} ({pattern}) gave nothing: {error}. "
            f"Remedy: put the file there, or run once where the hub can be reached"
        ) from error
    import pyarrow.parquet

    documents: list[str] = []
    for file in found.files:
        columns = pyarrow.parquet.read_schema(file).names
        if missing := [name for name in known.fields if name not in columns]:
            raise UserError(f"{file}: expected the fields {', '.join(missing)}, found {', '.join(columns)}")
        rows = pyarrow.parquet.read_table(file, columns=list(known.fields)).to_pylist()
        documents += [known.as_in_file("\n".join(row[name] for name in known.fields)) for row in rows]
    part = source.rows.get(split)
    return documents[slice(*part)] if part else documents, {
        "kind": "hub",
        "repository": source.repository,
        "revision": source.revision,
        "commit": found.commit,
        "files": pattern,
        **({"rows": list(part)} if part else {}),
    }


def _place(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.items() if key != "kind")


def pydocs(split: str) -> Split:
    """The embedded corpus: the prose of Python's own language reference, as the standard library carries it.

    A document is a topic. Every tenth topic in alphabetical order, from the seventh, is for validation: about a
    tenth of the text, and hardly any of it, unlike that of the other nine choices, recurs in other topics (class, for
    one, stands whole in compound). What does recur is taken out of train, paragraph by paragraph, so that no
    paragraph of validation was trained on. The text differs between versions of Python, and so does the fingerprint.

    Raises:
        UserError: a split other than train and validation, or a Python without the topics.
    """
    if split not in ("train", "validation"):
        raise did_you_mean("split of pydocs", split, ("train", "validation"))
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError(
            "this Python lacks pydoc_data.topics, the text of pydocs; install its full standard library"
        ) from error
    ranked = [topics[name] for name in sorted(topics)]
    documents = [text for rank, text in enumerate(ranked) if rank % 10 == 6]
    if split == "train":
        held_out = {" ".join(paragraph.split()) for text in documents for paragraph in _PARAGRAPH.findall(text)}
        kept = [text for rank, text in enumerate(ranked) if rank % 10 != 6]
        documents = [
            _PARAGRAPH.sub(lambda found: "" if " ".join(found[0].split()) in held_out else found[0], text)
            for text in kept
        ]
    version = ".".join(platform.python_version_tuple()[:2])
    return Split.of(
        "pydocs",
        split,
        documents,
        unit="document",
        edition=f"Python {version}",
        source={"kind": "embedded", "package": "pydoc_data.topics", "python": platform.python_version()},
    )


# Lines with something on them, and the blank lines that follow.
_PARAGRAPH = re.compile(r"(?:[^\n]*\S[^\n]*\n?)+(?:[^\S\n]*\n)*")
