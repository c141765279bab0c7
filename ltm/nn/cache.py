"""Keys and values of positions that a decoder has seen, kept for the positions to come.

Shapes: B sequences, H heads, K positions, C channels per head.
"""

from __future__ import annotations

from torch import Tensor


class KeyValueCache:
    """One layer's keys and values of the latest positions, in buffers with room for more.

    A new position is written behind the last one and moves nothing. Only when the buffers are full does what is held
    move to others with room for twice as much, so that each position is copied a few times, instead of once for every
    later position. Positions stay in order, and so do sums over them. No gradient goes through.
    """

    def __init__(self) -> None:
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._first = self._end = 0

    def __len__(self) -> int:
        """K, the number of positions held."""
        return self._end - self._first

    def add(self, k_BHLC: Tensor, v_BHLC: Tensor) -> tuple[Tensor, Tensor]:
        """Hold further positions too; return keys and values of all that are held, views (B, H, K, C)."""
        held, end = len(self), self._end + k_BHLC.shape[2]
        if self._buffers is None or end > self._buffers[0].shape[2]:
            before, end = self._held(), held + k_BHLC.shape[2]
            B, H, _, C = k_BHLC.shape
            self._buffers = k_BHLC.new_empty(B, H, 2 * end, C), v_BHLC.new_empty(B, H, 2 * end, C)
            for buffer, old in zip(self._buffers, before, strict=False):
                buffer[:, :, :held] = old
            self._first = 0
        for buffer, new in zip(self._buffers, (k_BHLC, v_BHLC), strict=True):
            buffer[:, :, end - k_BHLC.shape[2] : end] = new
        self._end = end
        k, v = self._held()
        return k, v

    def _held(self) -> tuple[Tensor, ...]:
        return tuple(buffer[:, :, self._first : self._end] for buffer in self._buffers or ())

    def keep(self, most: int) -> None:
        """Give up all positions but the last `most`."""
        self._first = max(self._first, self._end - most)

    def drop(self, last: int) -> None:
        """Give up the last `last` positions, to write others in their place."""
        self._end = max(self._first, self._end - last)
