"""Tests of learning: a loss that falls, weights that repeat under a seed, and checkpoints that score as they did."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltm.api import LanguageModel, LoadedModel, Loss, Rng
from ltm.rng import SequenceRng
from ltm.testing.miniatures import FamilyTests, skewed_batch, train_briefly, untrained
from ltm.training import checkpoint
from ltm.training.config import TrainConfig
from ltm.training.run import train_model

TEXTS = skewed_batch(torch.Generator().manual_seed(1), 64)


def loss_of(model: LanguageModel, texts_BL: Tensor = TEXTS, rng: Rng | None = None) -> Loss:
    """The loss as it is at the end of training."""
    return model.training_loss(texts_BL, rng=rng or SequenceRng(3, range(len(texts_BL))), progress=1.0)


class TrainingTests(FamilyTests):
    """The contract of `training_loss`, `count`, `finish` and `allocate`, and of what is kept of a model."""

    def test_the_loss_is_a_finite_scalar_with_gradients(self) -> None:
        """Numbers for the log are plain and finite; gradients are finite and not all zero, unless the family counts."""
        model = untrained(self.family)
        for progress in (0.0, 0.5, 1.0):
            loss = model.training_loss(TEXTS, rng=SequenceRng(3, range(len(TEXTS))), progress=progress)
            assert isinstance(loss, Loss) and loss.value.shape == () and math.isfinite(loss.value.item())
            assert all(type(value) in (int, float) and math.isfinite(value) for value in loss.metrics.values())
        if not model.learns_by_counting:
            loss.value.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert gradients and all(bool(g.isfinite().all()) for g in gradients)
            assert any(bool(g.any()) for g in gradients)

    def test_noise_of_training_comes_from_rng_alone(self) -> None:
        """The same whatever the global generators hold; a torch.Generator will do as well."""
        model, values = untrained(self.family), []
        with torch.random.fork_rng(devices=[]):
            for global_seed in (1, 2):
                torch.manual_seed(global_seed)
                values += [
                    loss_of(model).value.item(),
                    loss_of(model, rng=torch.Generator().manual_seed(3)).value.item(),
                ]
        assert values[:2] == values[2:]

    def test_training_lowers_the_loss(self) -> None:
        """By more than a tenth of a nat per token on texts of mostly one token, which any model can learn."""
        model = untrained(self.family)
        if not any(True for _ in model.parameters()):
            pytest.skip("a family without weights learns nothing")
        before = loss_of(model).value.item()
        train_briefly(model, 40, texts=skewed_batch)
        assert loss_of(model).value.item() < before - 0.1

    def test_a_checkpoint_scores_as_the_model_did(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`ltm-train` trains, saves and opens it; the same seed gives the same weights, and these the same numbers."""
        if not self.family.presets:
            pytest.skip("a family without presets is not trained here")
        monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
        (tmp_path / "corpora" / "sayings").mkdir(parents=True)
        (tmp_path / "corpora" / "sayings" / "train.txt").write_text("a stitch in time saves nine\n" * 8)

        def trained(folder: str) -> LoadedModel:
            return checkpoint.load(
                train_model(
                    f"{self.family.family}-miniature",
                    self.family,
                    self.family.miniature(vocab_size=258, block_length=16),
                    TrainConfig(budget="tokens=128", batch=4),
                    corpus="sayings",
                    data_dir=tmp_path / "corpora",
                    tokenizer_name="bytes",
                    output=tmp_path / folder,
                )
            )

        first, second = trained("first"), trained("second")
        assert type(first.model) is self.family and first.info["weights_digest"] == second.info["weights_digest"]
        assert checkpoint.weights_digest(first.model.state_dict()) == first.info["weights_digest"]
        texts, rng = torch.tensor([list(b"a stitch in time"), list(b"in time, a title")]), SequenceRng(0, range(2))
        for name, estimate in first.model.log_likelihoods(texts, rng=rng).items():
            assert torch.equal(estimate.nats_B, second.model.log_likelihoods(texts, rng=rng)[name].nats_B), name
