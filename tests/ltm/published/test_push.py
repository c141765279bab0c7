"""`ltm.push` and `--model org/name`, through a hub that is a folder: what comes back is what was pushed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ltm
from ltm import model_store
from ltm.errors import UserError
from ltm.rng import SequenceRng
from ltm.training.checkpoint import MANIFEST
from tasks import cli
from tests.ltm.published.test_convert import convert, lightning, place

assert place  # a fixture
COMMIT = "1" * 40


class FolderHub:
    """Stands for the client: a commit is a snapshot in the cache of the hub."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.made: list[tuple[str, bool]] = []

    def __call__(self, endpoint):
        return self

    def create_repo(self, repository, *, private, exist_ok):
        """Note it."""
        self.made.append((repository, private))

    def create_commit(self, repository, operations, *, commit_message, revision):
        """Write a snapshot."""
        folder = self.cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        for operation in operations:
            what = operation.path_or_fileobj
            if isinstance(what, bytes):
                (folder / operation.path_in_repo).write_bytes(what)
            else:
                shutil.copy(what, folder / operation.path_in_repo)
        return SimpleNamespace(commit_url=f"https://hub/{repository}/commit/{COMMIT}")


@pytest.fixture
def folder_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake = FolderHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    return fake


def pushed(folder_hub: FolderHub, repository: str) -> Path:
    return folder_hub.cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT


def test_what_is_pushed_comes_back(place, folder_hub):
    directory = convert.convert(lightning(place, "mdlm"), place / "made", family="mdlm")
    address = ltm.push(place / "made", "someone/net", results=place / "none", private=True)
    assert address.endswith(COMMIT) and folder_hub.made == [("someone/net", True)]
    folder = pushed(folder_hub, "someone/net")
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", MANIFEST, "README.md"),
    }
    before, after = (model_store.load(name, None, [], "cpu") for name in (str(directory), "someone/net"))
    assert before.info == after.info
    texts = torch.randint(200, (2, 9))
    scores = [m.model.log_likelihood(texts, rng=SequenceRng(0, range(2))).nats_B for m in (before, after)]
    assert torch.equal(*scores)
    # And from there to another repository.
    ltm.push(folder, "someone/other", results=place / "none")
    assert json.loads((pushed(folder_hub, "someone/other") / MANIFEST).read_text()) == json.loads(
        (folder / MANIFEST).read_text()
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", MANIFEST])
def test_what_was_altered_on_the_way_is_refused(name, place, folder_hub):
    convert.convert(lightning(place, "mdlm"), place / "made", family="mdlm")
    ltm.push(place / "made", "someone/net", results=place / "none")
    file = pushed(folder_hub, "someone/net") / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError):
        model_store.load("someone/net", None, [], "cpu")


def test_the_card_has_the_results_of_these_weights(place, folder_hub, monkeypatch, capsys):
    monkeypatch.setenv("LTM_HOME", str(place / "home"))
    convert.convert(lightning(place, "ar"), place / "made", family="ar")
    text = place / "text.txt"
    text.write_text("a little text, again and again, " * 60)
    options = ["--tasks", f"text:{text},audit", "--output", str(place / "results")]
    assert cli.main(["--model", f"ar:{place / 'made'}", *options]) == 0
    capsys.readouterr()
    ltm.push(place / "made", "someone/net", results=place / "results")
    card = (pushed(folder_hub, "someone/net") / "README.md").read_text()
    assert "ltm-eval --model someone/net" in card and "Audit: `exact` passed (no twin)." in card
    (row,) = [line for line in card.splitlines() if line.startswith("| text")]
    assert "≤" not in row and "~" not in row
    assert "Trained elsewhere; from last.ckpt." in card
    # Other weights have none of them.
    convert.convert(place / "last.ckpt", place / "raw", family="ar", weights="raw")
    ltm.push(place / "raw", "someone/raw", results=place / "results")
    assert "No perplexity of these weights" in (pushed(folder_hub, "someone/raw") / "README.md").read_text()


def test_a_hub_that_refuses_is_quoted(place, folder_hub, monkeypatch):
    convert.convert(lightning(place, "mdlm"), place / "made", family="mdlm")

    def refuse(*_, **__):
        raise ConnectionError("401 who are you")

    monkeypatch.setattr(folder_hub, "create_commit", refuse)
    with pytest.raises(UserError, match=r"cannot push to someone/net.*401 who are you; nothing was committed. Log in"):
        ltm.push(place / "made", "someone/net")
    with pytest.raises(UserError, match="expected a repository ORG/NAME"):
        ltm.push(place / "made", "net")
    with pytest.raises(UserError, match="no directory"):
        ltm.push(place / "absent", "someone/net")
