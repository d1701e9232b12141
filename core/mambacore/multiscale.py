"""A causal backbone of several rates: fast stages around slow ones, with any mixer in each.

The shape of SaShiMi (Goel, Gu, Donahue, Re 2022, arXiv 2202.09729, section 4): every level pools
`pool` positions into one wider vector, runs the slower level on these, and hands its result back
one frame later, so that nothing depends on a later position.

Shape suffixes: B batch, L length, M whole frames in a chunk, P pool, D width of a level, E width
of the level below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambacore.block import Block, RMSNorm
from mambacore.config import ModelConfig
from mambacore.errors import UsageError
from mambacore.init import initialise_linear
from mambacore.segments import check_segment_ids


@dataclass(frozen=True)
class MultiScaleConfig:
    """Widths, rates and mixers of a `MultiScaleBackbone`.

    Args:
        d_model: width of the fastest level.
        pools: positions that each level joins into one for the next slower level; (4, 4) has
            three levels, the slowest at a 16th of the rate.
        expand: growth of the width from a level to the next slower one.
        n_layer: blocks of every stage.
        mixers: mixer of each level, fastest first; one name for all, or len(pools) + 1 names.
        mixer_options: options by mixer name.
        unet: also n_layer blocks on the way down, before pooling.
        mlp_expand: as in `ModelConfig`; one number for all levels, or one a level.
        dropout, norm_eps, residual_dtype: as in `ModelConfig`.

    Raises:
        UsageError: a pool below 2, or a number of mixers or MLPs that is not that of the levels.

    >>> MultiScaleConfig(d_model=16, pools=(4, 2), mixers=("s4d", "s4d", "mamba")).total_pool
    8
    """

    d_model: int = 64
    pools: tuple[int, ...] = (4, 4)
    expand: float = 2.0
    n_layer: int = 8
    mixers: tuple[str, ...] = ("mamba",)
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    unet: bool = True
    mlp_expand: float | tuple[float, ...] = 0.0
    dropout: float = 0.0
    norm_eps: float = 1e-5
    residual_dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pools", tuple(self.pools))
        object.__setattr__(self, "mixers", tuple(self.mixers))
        if not self.pools or min(self.pools) < 2:
            raise UsageError(f"pools {self.pools!r}: give at least one pool, each of 2 or more")
        if len(self.mixers) == 1:
            object.__setattr__(self, "mixers", self.mixers * (len(self.pools) + 1))
        if len(self.mixers) != len(self.pools) + 1:
            raise UsageError(
                f"mixers names {len(self.mixers)} mixers for {len(self.pools) + 1} levels "
                f"(pools {self.pools}); give one a level, fastest first, or one for all"
            )
        if not isinstance(self.mlp_expand, int | float):
            given = tuple(self.mlp_expand)
            expands = given * len(self.mixers) if len(given) == 1 else given
            object.__setattr__(self, "mlp_expand", expands)
            if len(self.mlp_expands) != len(self.mixers):
                raise UsageError(
                    f"mlp_expand is {self.mlp_expand!r}; give one number for all of the "
                    f"{len(self.mixers)} levels, or one a level, fastest first"
                )
        if not 1 <= self.expand <= 8:
            raise UsageError(f"expand is {self.expand}; it must lie between 1 and 8")
        unused = set(self.mixer_options) - set(self.mixers)
        if unused:
            raise UsageError(
                f"mixer_options holds options for {sorted(unused)[0]!r}, which no level uses; "
                f"the levels use {', '.join(sorted(set(self.mixers)))}"
            )
        for level in range(len(self.mixers)):
            self.stage(level)

    @property
    def mlp_expands(self) -> tuple[float, ...]:
        """`mlp_expand` of each level."""
        if isinstance(self.mlp_expand, tuple):
            return self.mlp_expand
        return (self.mlp_expand,) * len(self.mixers)

    @property
    def total_pool(self) -> int:
        """Positions of the fastest level in one frame of the slowest."""
        total = 1
        for pool in self.pools:
            total *= pool
        return total

    def width(self, level: int) -> int:
        """Width of a level; 0 is the fastest."""
        return round(self.d_model * self.expand**level)

    def stage(self, level: int) -> ModelConfig:
        """What the blocks of a level are built from."""
        name = self.mixers[level]
        options: Mapping[str, Any] = self.mixer_options.get(name, {})
        return ModelConfig(
            d_model=self.width(level),
            n_layer=self.n_layer,
            mixer=name,
            mixer_options={name: dict(options)} if options else {},
            norm_eps=self.norm_eps,
            residual_dtype=self.residual_dtype,
            mlp_expand=self.mlp_expands[level],
            dropout=self.dropout,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` gives the same config back."""
        values = dataclasses.asdict(self)
        lists = {k: list(v) for k, v in values.items() if isinstance(v, tuple)}
        return {**values, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultiScaleConfig:
        """Read what `to_dict` wrote; an unknown key is a UsageError."""
        names = [item.name for item in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise UsageError(f"unknown backbone setting {name!r}; accepted: {', '.join(names)}")
        return cls(**values)


class LevelState(NamedTuple):
    """What a level carries between chunks.

    down, up: states of its blocks (None without blocks on the way down). below: state of the
    slower level, None before its first frame. pending: (batch, 0 .. pool - 1, width) inputs of
    the frame that is not whole yet; its length is the position within the frame. frame: (batch,
    pool, width) what the slower level adds within the current frame. segment: (batch,) id of the
    last position.
    """

    down: tuple[Any, ...] | None
    up: tuple[Any, ...] | None
    below: Any
    pending: Tensor
    frame: Tensor
    segment: Tensor


class _Stage(nn.Module):
    """Blocks without a final norm; the signature of a mixer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, name) for name in config.layer_names)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for block in self.layers if isinstance(block, Block))

    def forward(
        self, x: Tensor, state: tuple[Any, ...] | None, segment_ids: Tensor | None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        states = (None,) * len(self.layers) if state is None else state
        residual: Tensor | None = None
        after = []
        for block, layer_state in zip(self.blocks, states, strict=True):
            x, residual, layer_state = block.mix(x, residual, layer_state, segment_ids)
            after.append(layer_state)
        return x if residual is None else (residual + x).to(x.dtype), tuple(after)


class _Level(nn.Module):
    """One rate: blocks, then the slower level on pooled frames, then blocks again."""

    def __init__(self, config: MultiScaleConfig, level: int) -> None:
        super().__init__()
        stage, self.width = config.stage(level), config.width(level)
        self.slowest = level == len(config.pools)
        self.up = _Stage(stage)
        if self.slowest:
            return
        self.down = _Stage(stage) if config.unet else None
        self.pool = config.pools[level]
        self.below = _Level(config, level + 1)
        self.pool_down = nn.Linear(self.pool * self.width, self.below.width)
        self.pool_up = nn.Linear(self.below.width, self.pool * self.width)

    def forward(self, x: Tensor, state: Any, segment_ids: Tensor | None) -> tuple[Tensor, Any]:
        """x (B, L, D), L >= 1, to the same; the slowest level's state is its blocks' alone."""
        if self.slowest:
            return self.up(x, state, segment_ids)
        if state is None:
            empty = x.new_zeros(x.shape[0], 0, self.width)
            frame = x.new_zeros(x.shape[0], self.pool, self.width)
            segment = x.new_zeros(x.shape[0], dtype=torch.int64)
            if segment_ids is not None:
                segment = segment_ids[:, 0].long()
            state = LevelState(None, None, None, empty, frame, segment)
        down = state.down
        if self.down is not None:
            x, down = self.down(x, down, segment_ids)
        added, state = self._below(x, state, segment_ids)
        y, up = self.up(x + added, state.up, segment_ids)
        return y, state._replace(down=down, up=up)

    def _below(
        self, x: Tensor, state: LevelState, segment_ids: Tensor | None
    ) -> tuple[Tensor, LevelState]:
        """What the slower level adds at each position; it runs only where a frame is whole."""
        pending = torch.cat([state.pending.to(x.dtype), x], dim=1)
        position, whole = state.pending.shape[1], pending.shape[1] // self.pool
        frame_ids = None
        if segment_ids is not None:
            frame_ids = self._frame_ids(segment_ids, state.segment, position)
        frames, below = state.frame, state.below
        if whole:
            frames_BMPD = pending[:, : whole * self.pool].unflatten(1, (whole, self.pool))
            ids = None if frame_ids is None else frame_ids[:, :whole]
            low, below = self.below(self.pool_down(frames_BMPD.flatten(2)), below, ids)
            later = self.pool_up(low).unflatten(2, (self.pool, self.width))
            frames = torch.cat([frames.to(later.dtype), later.flatten(1, 2)], dim=1)
        if frame_ids is not None:
            frames = self._reset(frames, frame_ids, state.segment, position)
        added = frames[:, position : position + x.shape[1]]
        segment = state.segment if segment_ids is None else segment_ids[:, -1].long()
        state = state._replace(
            below=below,
            pending=pending[:, whole * self.pool :],
            frame=frames[:, whole * self.pool : (whole + 1) * self.pool],
            segment=segment,
        )
        return added, state

    def _frame_ids(self, segment_ids: Tensor, segment: Tensor, position: int) -> Tensor:
        """(B, frames touched) ids; within a frame there is only one."""
        ids = torch.cat([segment[:, None].expand(-1, position), segment_ids.long()], dim=1)
        first = ids[:, :: self.pool]
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            spread = first.repeat_interleave(self.pool, dim=1)[:, : ids.shape[1]]
            if not torch.equal(spread, ids):
                row, place = (spread != ids).nonzero()[0].tolist()
                raise UsageError(
                    f"row {row}: a segment starts {place % self.pool} positions into a frame of "
                    f"{self.pool}; with pooling, segments must start at multiples of the total "
                    "pooling (pad them)"
                )
        return first

    def _reset(self, frames: Tensor, ids: Tensor, segment: Tensor, position: int) -> Tensor:
        """Zero what a frame hears of another segment's frame before it."""
        # In mid-frame the current frame's share was reset when the frame began.
        before = torch.cat([ids[:, :1] if position else segment[:, None], ids[:, :-1]], dim=1)
        same = (before == ids).repeat_interleave(self.pool, dim=1)
        missing = frames.shape[1] - same.shape[1]
        if missing > 0:
            same = torch.cat([same, same.new_ones(same.shape[0], missing)], dim=1)
        zero = frames.new_zeros(())
        return torch.where(same[:, : frames.shape[1], None], frames, zero)


class MultiScaleBackbone(nn.Module):
    """``forward(x, state=None, *, segment_ids=None) -> (y, state)`` at several rates.

    x, y: (batch, length, d_model), any length from 1 on; whole = any chunks = single steps, to
    rounding. A step runs only the levels whose frame it completes: with pools (4, 4), the slowest
    runs at every 16th. All rows of a batch are at the same position. Segments must start at
    multiples of `config.total_pool`.

    >>> model = MultiScaleBackbone(MultiScaleConfig(d_model=8, pools=(2,), n_layer=1))
    >>> x = torch.randn(1, 7, 8)
    >>> whole, _ = model(x)
    >>> head, state = model(x[:, :3])
    >>> tail, _ = model(x[:, 3:], state)
    >>> torch.allclose(whole, torch.cat([head, tail], 1), atol=1e-5)
    True
    """

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__()
        self.config = config
        self.level = _Level(config, 0)
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        initialise_linear(self)
        stages = [m for m in self.modules() if isinstance(m, _Stage)]
        blocks = [block for stage in stages for block in stage.blocks]
        outputs = sum(1 if block.mlp is None else 2 for block in blocks)
        for stage in stages:
            for block in stage.blocks:
                if not block.mixer.causal:
                    raise UsageError(
                        f"{type(block.mixer).__name__} needs the whole sequence; the levels of "
                        "this backbone must be causal"
                    )
                block.scale_output(outputs**-0.5)

    causal = True
    splits = False  # frames are pooled: a part's edges would have to fall on theirs
    sequence_group = None

    def forward(
        self, x: Tensor, state: Any = None, *, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Raises UsageError for a shape that is not (batch, length >= 1, d_model)."""
        if x.dim() != 3 or x.shape[-1] != self.config.d_model or x.shape[1] < 1:
            raise UsageError(
                f"input has shape {tuple(x.shape)}; this backbone takes (batch, length >= 1, "
                f"{self.config.d_model})"
            )
        if segment_ids is not None:
            check_segment_ids(segment_ids, x.shape[0], x.shape[1])
        y, state = self.level(x, state, segment_ids)
        y, _ = self.norm_f(y)
        return y, state
