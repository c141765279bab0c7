"""Training recipes that presets of different families share, so that a comparison is at equal tokens and tuning."""

from __future__ import annotations

from typing import Any


def tiny_recipe() -> dict[str, Any]:
    """A recipe for a laptop CPU: minutes. On so few tokens many small updates learn more than few large ones."""
    return {"budget": "tokens=400k", "batch": 4, "lr": 2e-3, "warmup": 0.1, "ema": 0.99}


def published_recipe(tokens: str) -> dict[str, Any]:
    """The public LTM code's recipe: 524,288 positions per update, AdamW 4e-4 with cosine to a tenth (LTM config.py)."""
    return {"budget": f"tokens={tokens}", "batch": 64, "accumulation": 8, "lr": 4e-4, "ema": 0.999}
