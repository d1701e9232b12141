"""Causal softmax attention: the baseline that the recurrences are compared with.

Shape suffixes: B batch, H heads, L new positions, T cached positions, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambacore.errors import UsageError
from mambacore.mixers.base import Mixer
from mambacore.mixers.registry import register_mixer
from mambacore.precision import accumulate_dtype
from mambacore.segments import continues, keep_rows, last_segment, runs


class AttentionState(NamedTuple):
    """What an `AttentionMixer` carries: it grows with the length.

    keys, values: (batch, heads, cached, head width), keys already rotated.
    position: (batch,) int64, positions of the current segment seen so far.
    segment: (batch,) int64 id of that segment. Its keys are the last `position` of the cache.
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    segment: Tensor


class AttentionCache(NamedTuple):
    """A state of fixed size for decoding: made by `reserve`, and written in place.

    keys, values: (batch, heads, capacity, head width), of which the first `position` are filled.
    position, segment: as in `AttentionState`.

    A forward pass writes into the very tensors that it was given, so that it can be recorded as a
    CUDA graph; an older copy of the state is no way back.
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    segment: Tensor


def reserve(state: AttentionState, capacity: int) -> AttentionCache:
    """The same state with room for `capacity` positions in all.

    Args:
        state: what an `AttentionMixer` returned.
        capacity: positions, those seen so far included.

    Raises:
        UsageError: more has been seen already.

    >>> mixer = AttentionMixer(8, n_heads=2)
    >>> x = torch.randn(1, 6, 8)
    >>> whole, _ = mixer(x)
    >>> head, state = mixer(x[:, :4])
    >>> tail, _ = mixer(x[:, 4:], reserve(state, 6))
    >>> torch.allclose(whole, torch.cat([head, tail], dim=1), atol=1e-6)
    True
    """
    cached = state.keys.shape[2]
    if capacity < cached:
        raise UsageError(f"capacity {capacity} is below the {cached} positions that are cached")
    # A row's own keys are the last `position` of the cache; here they become the first.
    index = torch.arange(cached, device=state.keys.device)
    index = (index + (cached - state.position)[:, None]).clamp(max=max(cached - 1, 0))
    index = index[:, None, :, None].expand_as(state.keys)
    room = (0, 0, 0, capacity - cached)
    keys, values = (F.pad(t.gather(2, index), room) for t in (state.keys, state.values))
    return AttentionCache(keys, values, state.position.clone(), state.segment)


@register_mixer("attention")
class AttentionMixer(Mixer):
    """Multi-head causal self-attention with rotary positions and a cache of keys and values.

    Positions count from the start of each segment, so packed and separate sequences agree. Rotary
    embedding after Su et al. 2021 (arXiv 2104.09864), halves rotated against each other; its
    angles are computed in float64. The state grows by 2 d_model numbers a position and every step
    copies it, so this is for comparison, not for a million steps. For decoding without those copies
    see `reserve`.

    Args:
        d_model: width of input and output.
        n_heads: heads; by default one for every 64 channels, at least one.
        rope_base: base of the rotary frequencies.
        bias: the projections have biases.

    >>> mixer = AttentionMixer(8, n_heads=2)
    >>> x = torch.randn(2, 6, 8)
    >>> whole, _ = mixer(x)
    >>> head, state = mixer(x[:, :5])
    >>> tail, state = mixer(x[:, 5:], state)
    >>> torch.allclose(whole, torch.cat([head, tail], dim=1), atol=1e-6)
    True
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int | None = None,
        rope_base: float = 10_000.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        heads = max(1, d_model // 64) if n_heads is None else n_heads
        if heads < 1 or d_model % heads or (d_model // heads) % 2:
            raise UsageError(
                f"d_model {d_model} does not divide into {heads} heads of even width; "
                "choose another n_heads"
            )
        self.d_model = d_model
        self.n_heads = heads
        self.head_width = d_model // heads
        self.rope_base = rope_base
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        state: AttentionState | AttentionCache | None = None,
        *,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState | AttentionCache]:
        """See `Mixer`; the state holds every key and value of the current segments."""
        self._check(x, segment_ids)
        if isinstance(state, AttentionCache):
            return self._in_place(x, state, segment_ids)
        batch, length, _ = x.shape
        if state is not None:
            self._check_state(state, AttentionState, batch)
        fresh = state is None and segment_ids is None
        segment = x.new_zeros(batch, dtype=torch.int64) if state is None else state.segment
        seen = torch.zeros_like(segment) if state is None else state.position
        numbers = None if segment_ids is None else runs(segment_ids, segment)
        positions = _positions(seen, length, numbers)

        q, k, v = (
            part.unflatten(-1, (self.n_heads, self.head_width)).transpose(1, 2)
            for part in self.in_proj(x).chunk(3, dim=-1)
        )
        q, k = self._rotate(positions, q, k)
        keys, values = k, v
        if state is not None:
            kept = continues(segment_ids, segment)
            keys = torch.cat([keep_rows(state.keys, kept), k], dim=2)
            values = torch.cat([keep_rows(state.values, kept), v], dim=2)
        mask = None if fresh else _mask(keys.shape[2] - length, length, seen, numbers)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=fresh)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        position = positions[:, -1] + 1
        if numbers is not None:
            keys, values = _forget(keys, values, position)
        return y, AttentionState(keys, values, position, last_segment(segment_ids, segment))

    def _in_place(
        self, x: Tensor, state: AttentionCache, segment_ids: Tensor | None
    ) -> tuple[Tensor, AttentionCache]:
        self._check_state(state, AttentionCache, x.shape[0])
        capacity = state.keys.shape[2]
        if segment_ids is not None:
            raise UsageError("a reserved attention cache holds one segment; leave segment_ids out")
        positions = _positions(state.position, x.shape[1], None)
        # On a GPU the check would wait for the device; there the write itself fails.
        if not x.is_cuda and int(positions[:, -1].max()) >= capacity:
            raise UsageError(
                f"the attention cache has room for {capacity} positions and is full; "
                "reserve a larger one"
            )
        q, k, v = (
            part.unflatten(-1, (self.n_heads, self.head_width)).transpose(1, 2)
            for part in self.in_proj(x).chunk(3, dim=-1)
        )
        q, k = self._rotate(positions, q, k)
        place = positions[:, None, :, None].expand_as(k)
        state.keys.scatter_(2, place, k)
        state.values.scatter_(2, place, v)
        mask = torch.arange(capacity, device=x.device) <= positions[:, None, :, None]
        y = F.scaled_dot_product_attention(q, state.keys, state.values, attn_mask=mask)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y, state._replace(position=positions[:, -1] + 1)

    def initial_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        device, dtype = self._place(device, dtype)
        empty = torch.zeros(batch, self.n_heads, 0, self.head_width, device=device, dtype=dtype)
        zero = torch.zeros(batch, device=device, dtype=torch.int64)
        return AttentionState(empty, empty, zero, zero)

    def _rotate(self, positions: Tensor, *vectors: Tensor) -> list[Tensor]:
        half = self.head_width // 2
        exponent = torch.arange(half, device=positions.device, dtype=torch.float64) / half
        angle = positions[:, None, :, None] * self.rope_base**-exponent
        rotated = []
        for vector in vectors:
            wide = accumulate_dtype(vector.dtype)
            cos, sin = angle.cos().to(wide), angle.sin().to(wide)
            a, b = vector.to(wide).chunk(2, dim=-1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
            rotated.append(turned.to(vector.dtype))
        return rotated


def _positions(seen: Tensor, length: int, numbers: Tensor | None) -> Tensor:
    """(B, L) position of each input within its segment; run 0 goes on from `seen`."""
    index = torch.arange(length, device=seen.device)
    if numbers is None:
        return seen[:, None] + index
    before = torch.cat([torch.zeros_like(numbers[:, :1]), numbers[:, :-1]], dim=1)
    # Where each run starts; the carried run started `seen` positions before this chunk.
    start = torch.where(numbers != before, index, -seen[:, None]).cummax(dim=1).values
    return index - start


def _mask(cached: int, length: int, seen: Tensor, numbers: Tensor | None) -> Tensor:
    """(B, 1, L, T + L) bool: what each new position may look at."""
    index = torch.arange(length, device=seen.device)
    causal = index[:, None] >= index
    age = cached - torch.arange(cached, device=seen.device)
    carried = (age <= seen[:, None])[:, None].expand(-1, length, -1)
    if numbers is None:
        new = causal.expand(len(seen), -1, -1)
    else:
        new = causal & (numbers[:, :, None] == numbers[:, None, :])
        carried = carried & (numbers == 0)[..., None]
    return torch.cat([carried, new], dim=2)[:, None]


def _forget(keys: Tensor, values: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the keys that no row's segment reaches back to (not while compiling: it syncs)."""
    if torch.compiler.is_compiling():
        return keys, values
    kept = int(position.max())
    return keys[:, :, keys.shape[2] - kept :], values[:, :, values.shape[2] - kept :]
