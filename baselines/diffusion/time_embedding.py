"""An embedding of the time, one number per sequence, for stacks made with `condition`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltm.nn.dit import DiTConfig
from ltm.nn.transformer import TransformerConfig


class TimeEmbedding(nn.Module):
    """Sines and cosines of a number in [0, 1], followed by a small MLP: (B,) to (B, E).

    Args:
        width: E, even.

    Raises:
        ValueError: an odd width, or one below 2.
    """

    def __init__(self, width: int):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"a time embedding needs an even width of at least 2, found {width}")
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, time_B: Tensor) -> Tensor:
        """Return the condition of each sequence, (B, E), in the parameters' dtype."""
        # From 1 radian over [0, 1], where the sine nearly equals the time, to 100 radians.
        frequencies = torch.logspace(0, 2, self.width // 2, dtype=torch.float64, device=time_B.device)
        angles = time_B.double()[:, None] * frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], 1).to(next(self.mlp.parameters()).dtype))


def conditioning_flops(config: TransformerConfig | DiTConfig, width: int) -> float:
    """Return FLOPs per sequence of a time embedding and of all blocks' modulations; 0 for width 0."""
    return 4 * width * width + 2 * width * 6 * config.width * config.layers
