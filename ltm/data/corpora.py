"""Corpora: documents with exact byte and word counts and a fingerprint, by name and split.

A name is looked up among the embedded corpora (entry points `ltm.corpora`), then in a local directory, then on the
Hugging Face hub for the corpora of `ltm.data.corpus_table`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm import files, hub, registry
from ltm.data import local_files, rows
from ltm.data import tally as tallies
from ltm.data.corpus_table import KNOWN, HubSource, KnownCorpus
from ltm.data.derived import held_out, mixture
from ltm.data.documents import Documents
from ltm.data.reading import AS_IT_IS, Reading
from ltm.data.split import Split
from ltm.errors import UserError, did_you_mean
from ltm.untrusted.display import printable

if TYPE_CHECKING:
    from ltm.known_sources.base import KnownSource


def load(corpus: str, split: str, *, data_dir: Path | None = None, reading: Reading = AS_IT_IS) -> Split:
    """Load a split by name; `data_dir` is the local directory of corpora, $LTM_DATA_DIR when None.

    `reading` is for local files; its column, for corpora that are not in the table. A known source takes settings after
    its name: `topics:length=64,words=32` (`ltm.known_sources.base`). `hub:OWNER/NAME:CONFIG@REVISION` is a data set of
    the hub, read as a stream; the last two may be left out. `novels+4*gsm8k/train_rest` is a mixture of corpora
    (`ltm.data.derived.mixture`); any corpus with a train split has `train_holdout` and `train_rest` too
    (`ltm.data.derived.held_out`).

    Raises:
        UserError: unknown corpus or split, or text that cannot be found or read; the message says how to fix it.
    """
    if mixture.is_mixture(corpus):
        parts = mixture.parse(corpus)
        texts = [load(part.corpus, part.split or split, data_dir=data_dir, reading=reading) for part in parts]
        return mixture.mixed(corpus, split, [*zip(parts, texts, strict=True)])
    if split in (held_out.HOLDOUT, held_out.REST):
        return held_out.part(load(corpus, "train", data_dir=data_dir, reading=reading), split)
    given, (corpus, colon, settings) = corpus, corpus.partition(":")
    for kind, name in (("corpus", corpus), ("split", split)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{kind} name {name!r}: expected letters, digits, '.', '_' and '-', and no path")
    if colon and corpus == "hub":
        return _streamed(settings, split, reading)
    embedded = registry.corpus_factory(corpus) if corpus in registry.names(registry.CORPORA) else None
    if isinstance(embedded, type):
        from ltm.known_sources.base import from_settings  # which needs torch

        return split_of(from_settings(given), split)
    if colon and (embedded or corpus in available(data_dir)):
        raise UserError(f"corpus {corpus} has no settings, found {settings!r}; give its name alone")
    if embedded:
        return embedded(split)
    known = KNOWN.get(corpus, KnownCorpus())
    directory = files.data_directory(data_dir)
    if directory and (file := local_files.find(directory, corpus, split)):
        if corpus in KNOWN:
            reading = dataclasses.replace(reading, text_column=None)
        found = local_files.read(file, known, reading)
        where = {"kind": "local", "file": file.relative_to(directory).as_posix()}
        return _counted(corpus, split, found, known, where)
    if known.hub and split in known.hub.files:
        return _from_hub(corpus, split, known, known.hub, directory)
    raise _unknown(corpus, split, directory)


def _counted(corpus: str, split: str, found: local_files.Texts, known: KnownCorpus, where: dict[str, Any]) -> Split:
    documents, tally, source = found.counted(known.detokenizer)
    return Split.tallied(
        corpus,
        split,
        documents,
        tally,
        unit=found.unit,
        detokenizer=known.detokenizer,
        source={**where, **source},
    )


def load_file(file: Path, *, reading: Reading = AS_IT_IS) -> Split:
    """Load a local file as the split `all` of a corpus `text_<label>` (`ltm.data.local_files.label`).

    Documents are the rows of a file of rows (.jsonl, .json, .csv, .tsv, .parquet) and the lines of any other; nothing
    is detokenised. A pipe is read once, to its end.

    Raises:
        UserError: no such file, no text in it, or text that cannot be read.
    """
    label = local_files.label(file)
    found = local_files.read(file, KnownCorpus(), reading, named=True)
    where = {"kind": "file", "file": printable(file.name, keep=frozenset())}
    return _counted(f"text_{label}", "all", found, KnownCorpus(), where)


def available(data_dir: Path | None = None) -> dict[str, list[str]]:
    """Corpora by name: local and hub ones with their splits, embedded ones with none, since only they know theirs."""
    directory = files.data_directory(data_dir)
    splits = local_files.corpora(directory) if directory else {}
    for name, known in KNOWN.items():
        if known.hub:
            splits[name] = sorted({*splits.get(name, ()), *known.hub.files})
    return splits | {name: [] for name in registry.names(registry.CORPORA)}


def at_hand(corpus: str, split: str, *, data_dir: Path | None = None) -> bool:
    """True if a split is embedded, in the local directory or in the hub's cache; nothing is read or downloaded."""
    if mixture.is_mixture(corpus):
        parts = mixture.parse(corpus)
        return all(at_hand(part.corpus, part.split or split, data_dir=data_dir) for part in parts)
    split = "train" if split in (held_out.HOLDOUT, held_out.REST) else split
    if corpus.partition(":")[0] in registry.names(registry.CORPORA):
        return True
    directory = files.data_directory(data_dir)
    if directory and local_files.find(directory, corpus, split):
        return True
    source = KNOWN.get(corpus, KnownCorpus()).hub
    return bool(
        source
        and split in source.files
        and hub.cached(source.repository, "dataset", (source.files[split],), source.revision)
    )


def _unknown(corpus: str, split: str, directory: Path | None) -> UserError:
    known = available(directory)
    if corpus in known:
        error = did_you_mean(f"split of {corpus}", split, known[corpus])
    else:
        error = did_you_mean("corpus", corpus, known)
    return UserError(f"{error}; {_looked_for(corpus, split, directory)}")


def _looked_for(corpus: str, split: str, directory: Path | None) -> str:
    if directory is None:
        return f"put {local_files.names(split)} in DIR/{corpus}/ and set LTM_DATA_DIR=DIR"
    others = local_files.corpora(directory).get(corpus)
    hint = (
        f", which has {' and '.join(others)} (another split is never used instead: rename its file)" if others else ""
    )
    return f"looked for {local_files.names(split)} in {directory / corpus}{hint}"


def _from_hub(corpus: str, split: str, known: KnownCorpus, source: HubSource, directory: Path | None) -> Split:
    pattern = source.files[split]
    try:
        snapshot = hub.fetch(source.repository, "dataset", (pattern,), source.revision)
    except hub.HubError as error:
        raise UserError(
            f"{corpus}/{split} is not here: {_looked_for(corpus, split, directory)}; or run once where the hub can be "
            f"reached, for {pattern}: {error}"
        ) from error
    part = source.rows.get(split)
    where = {
        "kind": "hub",
        "repository": source.repository,
        "revision": source.revision,
        "commit": snapshot.commit,
        "files": pattern,
        **({"rows": list(part)} if part else {}),
    }
    return _counted(corpus, split, local_files.of_snapshot(snapshot.files, known, part), known, where)


def _streamed(name: str, split: str, reading: Reading) -> Split:
    """A data set of the hub, as `datasets` streams it: row after row over the network, and nothing of it is kept."""
    name, _, revision = name.partition("@")
    repository, _, config = name.partition(":")
    if not hub.is_repository(repository):
        raise UserError(f"hub:{printable(name)}: expected hub:OWNER/NAME, or hub:OWNER/NAME:CONFIG@REVISION")
    try:
        commit = hub.commit_of(repository, "dataset", revision or "main")
    except hub.HubError as error:
        raise UserError(
            f"hub:{name}: {error}; what was read before is found without the hub under its commit: hub:{name}@COMMIT"
        ) from error
    column = reading.text_column or "text"
    columns = rows.Columns(choices=((column,),), remedy="; to read another: --text-column NAME")

    def read() -> Iterator[str]:
        import datasets

        try:
            found = datasets.load_dataset(repository, config or None, split=split, streaming=True, revision=commit)
            for number, row in enumerate(found, start=1):
                where = f"hub:{name}, row {number}"
                yield rows.document_of(row, columns.chosen(row, where), where)
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # its own, the HTTP library's and the operating system's errors alike
            raise UserError(f"hub:{name}: {type(error).__name__}: {error}; repeat the command") from error

    documents = Documents(read)
    where = {"kind": "hub", "repository": repository, "config": config, "commit": commit, "text_column": column}
    tally = tallies.kept(
        {**where, "split": split},
        lambda: tallies.counted(tallies.said(documents, f"reading hub:{name}"), detokenizer=None),
    )
    label = repository.replace("/", "--") + (f"--{config}" if config else "")
    documents.counted(tally.documents)
    return Split.tallied(label, split, documents, tally, unit="document", detokenizer=None, source=where)


SIZES: Mapping[str, int] = {"train": 50_000, "validation": 1_000, "test": 1_000}
"""The number of texts in each split of a known source."""


@functools.lru_cache(maxsize=4)
def split_of(source: KnownSource, split: str) -> Split:
    """Make a split of a known source: each document is a text, with unit `sequence`.

    Raises:
        UserError: another split than train, validation and test.
    """
    from ltm.known_sources.base import EDITION

    if split not in SIZES:
        raise did_you_mean(f"split of {source.name}", split, SIZES)
    return Split.of(
        source.spec,
        split,
        source.texts(source.sample(SIZES[split], seed=0, purpose=split)),
        unit="sequence",
        edition=f"{source.spec} {EDITION}",
        source={"kind": "known_source", "spec": source.spec, "edition": EDITION, "length": source.length},
    )
