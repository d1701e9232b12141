"""A multi-scale model of Mamba and S4D laid out for decoding on a GPU, in memory that stays put.

Every step of a period of `total_pool` steps is a fixed list of launches on fixed memory: what a
CUDA graph can hold. See `mambakernels.decode.triton` and `.triton_s4d` for what a launch does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambacore.block import Block
from mambacore.errors import UsageError
from mambacore.mixers.diagonal import Diagonal
from mambacore.mixers.mamba import MambaMixer
from mambacore.mixers.s4d import S4DMixer
from mambacore.multiscale import MultiScaleBackbone


def why_not(backbone: MultiScaleBackbone) -> str | None:
    """Why this backbone has no fused steps on a GPU; None when it has."""
    for block in backbone.modules():
        if isinstance(block, Block):
            mixer = block.mixer
            if not isinstance(mixer, MambaMixer | S4DMixer):
                return f"there is no fused step of its {type(mixer).__name__}"
            if isinstance(mixer, MambaMixer) and (
                mixer.discretization != "euler" or block.mlp is not None
            ):
                return "fused steps of Mamba mixers are of Euler ones without an MLP"
    if backbone.norm_f.weight.dtype == torch.float64:
        return "it is float64"
    return None


class _MambaStage:
    """Packed weights and states of the blocks of a stage, one launch a step."""

    def __init__(self, blocks: Any, rows: int, scratch: Tensor | None = None) -> None:
        from mambakernels.decode import triton

        self._triton = triton
        mixer = blocks[0].mixer
        self.shape = triton.StageShape(
            mixer.d_model, mixer.d_inner, mixer.d_state, mixer.dt_rank, mixer.d_conv,
            blocks[0].norm.eps,
        )  # fmt: skip
        self.weights = torch.stack([triton.pack(_parts(block)) for block in blocks])
        device = self.weights.device
        self.conv = torch.zeros(len(blocks), rows, mixer.d_conv - 1, mixer.d_inner, device=device)
        self.ssm = torch.zeros(len(blocks), rows, mixer.d_inner, mixer.d_state, device=device)
        self.scratch = torch.zeros(rows, self.shape.scratch, device=device)

    def load(self, states: Any) -> None:
        """Take over the mixers' states, one a block; None leaves zeros."""
        for layer, state in enumerate(states or ()):
            self.conv[layer].copy_(state.conv)
            self.ssm[layer].copy_(state.ssm)

    def keep(self, rows: Tensor) -> None:
        """The state of row i becomes that of row `rows[i]`."""
        self.conv.copy_(self.conv[:, rows])
        self.ssm.copy_(self.ssm[:, rows])

    def step(self, x: Tensor, added: Tensor | None, out: Tensor) -> None:
        self._triton.stage(
            self.shape, x, added, out, self.weights, self.conv, self.ssm, self.scratch
        )


class _S4DStage:
    """The same of S4D blocks."""

    def __init__(self, blocks: Any, rows: int) -> None:
        from mambakernels.decode import triton, triton_s4d

        self._triton = triton_s4d
        mixer, mlp = blocks[0].mixer, blocks[0].mlp
        hidden = 0 if mlp is None else mlp.fc2.in_features
        self.shape = triton_s4d.StageShape(mixer.d_model, mixer.modes, hidden, blocks[0].norm.eps)
        with torch.no_grad():
            systems = [
                Diagonal.discretise(m.log_dt, m.log_A_real, m.A_imag, m.C)
                for m in (block.mixer for block in blocks)
            ]
            self.decays = torch.stack([torch.view_as_real(s.log_a.exp()) for s in systems])
            parts = [_s4d_parts(block, s) for block, s in zip(blocks, systems, strict=True)]
        self.weights = torch.stack([triton.pack(part) for part in parts])
        device = self.weights.device
        self.ssm = torch.zeros(len(blocks), rows, *self.decays.shape[1:], device=device)
        self.scratch = torch.zeros(rows, self.shape.scratch, device=device)

    def load(self, states: Any) -> None:
        """Take over the mixers' states, one a block; None leaves zeros."""
        for layer, state in enumerate(states or ()):
            self.ssm[layer].copy_(torch.view_as_real(state.ssm.resolve_conj()))

    def keep(self, rows: Tensor) -> None:
        """The state of row i becomes that of row `rows[i]`."""
        self.ssm.copy_(self.ssm[:, rows])

    def step(self, x: Tensor, added: Tensor | None, out: Tensor) -> None:
        self._triton.stage(
            self.shape, x, added, out, self.weights, self.decays, self.ssm, self.scratch
        )


def _s4d_parts(block: Any, system: Diagonal) -> list[Tensor]:
    m = block.mixer
    parts = [
        block.norm.weight,
        torch.view_as_real(system.b),
        torch.view_as_real(system.c),
        m.D,
        m.out_proj.weight.t(),
        m.out_proj.bias,
    ]
    if block.mlp is not None:
        parts += [block.norm2.weight, block.mlp.fc1.weight.t(), block.mlp.fc2.weight.t()]
    return [part.float() for part in parts]


def _stage(blocks: Any, rows: int) -> _MambaStage | _S4DStage:
    kind = _S4DStage if isinstance(blocks[0].mixer, S4DMixer) else _MambaStage
    return kind(blocks, rows)


def _parts(block: Block) -> list[Tensor]:
    m = block.mixer
    assert isinstance(m, MambaMixer)
    weight = m.in_proj.weight
    zeros = weight.new_zeros
    with torch.no_grad():
        parts = [
            block.norm.weight,
            weight.t(),
            zeros(2 * m.d_inner) if m.in_proj.bias is None else m.in_proj.bias,
            m.conv1d.weight[:, 0].t(),
            zeros(m.d_inner) if m.conv1d.bias is None else m.conv1d.bias,
            m.x_proj.weight.t(),
            m.dt_proj.weight.t(),
            m.dt_proj.bias,
            -torch.exp(m.A_log),
            m.D,
            m.out_proj.weight.t(),
            zeros(m.d_model) if m.out_proj.bias is None else m.out_proj.bias,
        ]
        # A, D and delta's bias enter an exponential: one dtype for all, the widest.
        return [part.float() for part in parts]


class _LevelMemory:
    """A level's stages, the frame that is under way, and what the slower level adds to it."""

    def __init__(self, level: Any, state: Any, rows: int) -> None:
        device = level.up.blocks[0].norm.weight.device
        self.level, self.slowest = level, level.slowest
        self.up = _stage(level.up.blocks, rows)
        self.down: _MambaStage | _S4DStage | None = None
        self.out = torch.zeros(rows, level.width, device=device)
        if self.slowest:
            self.up.load(state)
            return
        self.pool, self.width = level.pool, level.width
        if level.down is not None:
            self.down = _stage(level.down.blocks, rows)
        self.pending = torch.zeros(rows, self.pool, self.width, device=device)
        self.frame = torch.zeros(rows, self.pool, self.width, device=device)
        if state is not None:
            self.up.load(state.up)
            if self.down is not None:
                self.down.load(state.down)
            self.pending[:, : state.pending.shape[1]].copy_(state.pending)
            self.frame.copy_(state.frame)

    def keep(self, rows: Tensor) -> None:
        """The state of row i becomes that of row `rows[i]`."""
        for stage in (self.up, self.down):
            if stage is not None:
                stage.keep(rows)
        if not self.slowest:
            self.pending.copy_(self.pending[rows])
            self.frame.copy_(self.frame[rows])


class DeviceDecoding:
    """Fused steps of ``head(norm(levels(embedding(symbol) + condition)))`` for fixed rows.

    Args:
        backbone: one for which `why_not` is None, in evaluation mode.
        embedding, head: as for `mambacore.decoding.DecodingPlan`.
        state: of the backbone, to be continued; None begins.
        condition: (rows, d_model) added to every input, or None.
        rows: of the batch.
        phases: parts that take turns; divides the first pool.

    All memory is allocated here; `step` touches nothing else of lasting use, so that a period of
    steps can be captured.
    """

    def __init__(
        self,
        backbone: MultiScaleBackbone,
        embedding: nn.Embedding,
        head: nn.Linear,
        state: Any,
        condition: Tensor | None,
        rows: int,
        *,
        phases: int = 1,
    ) -> None:
        reason = why_not(backbone)
        if reason:
            raise UsageError(f"this model has no fused steps: {reason}")
        from mambakernels.decode import triton

        self._triton = triton
        self.phases = phases
        self.symbols = head.out_features // phases
        self.inputs = embedding.num_embeddings // phases
        with torch.no_grad():
            self._embedding = embedding.weight.detach().float()
            self._condition = None if condition is None else condition.detach().float()
            self._norm, self._eps = backbone.norm_f.weight.detach().float(), backbone.norm_f.eps
            weight = head.weight.detach().float().unflatten(0, (phases, self.symbols))
            self._weight = weight.transpose(1, 2).contiguous()  # (phases, D, V)
            self._bias = head.bias.detach().float().view(phases, self.symbols).contiguous()
        self.levels: list[_LevelMemory] = []
        level, carried = backbone.level, state
        while True:
            self.levels.append(_LevelMemory(level, carried, rows))
            if level.slowest:
                break
            level, carried = level.below, None if carried is None else carried.below

    @torch.no_grad()
    def step(self, fed: Tensor, place: int, **drawing: Any) -> None:
        """Feed symbols (rows,) at this place within a period; then `head` with `drawing`."""
        phase = place % self.phases
        index = fed + phase * self.inputs if phase else fed
        x = F.embedding(index, self._embedding)
        if self._condition is not None:
            x = x + self._condition
        self._level(0, x, place)
        self._triton.head(
            self.levels[0].out, self._norm, self._weight[phase], self._bias[phase], self._eps,
            **drawing,
        )  # fmt: skip
        # The slower levels' frames are heard from the next step on.
        self._slower(place)

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Between two periods: row i takes over the state of row `rows[i]`, (rows,)."""
        for memory in self.levels:
            memory.keep(rows)
        if self._condition is not None:
            self._condition.copy_(self._condition[rows])

    def _level(self, number: int, x: Tensor, place: int) -> None:
        """One step of a level alone; `place` counts its own positions."""
        memory = self.levels[number]
        if memory.slowest:
            memory.up.step(x, None, memory.out)
            return
        within = place % memory.pool
        heard = memory.pending[:, within]
        if memory.down is not None:
            memory.down.step(x, None, heard)
        else:
            heard.copy_(x)
        memory.up.step(heard, memory.frame[:, within], memory.out)

    def _slower(self, place: int) -> None:
        """The levels whose frame was completed by this step."""
        for number, memory in enumerate(self.levels[:-1]):
            if place % memory.pool != memory.pool - 1:
                return
            place //= memory.pool
            level, below = memory.level, self.levels[number + 1]
            frame = F.linear(
                memory.pending.flatten(1), level.pool_down.weight.float(),
                level.pool_down.bias.float(),
            )  # fmt: skip
            self._level(number + 1, frame, place)
            later = F.linear(below.out, level.pool_up.weight.float(), level.pool_up.bias.float())
            memory.frame.copy_(later.view_as(memory.frame))
