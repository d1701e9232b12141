"""A multi-scale model laid out for compiled decoding on the CPU, and its state carried there.

The step of a small model is a few dozen microseconds of arithmetic; through torch it is thousands
of calls of ten. `DecodingPlan` copies the weights into the flat arrays that
`mambakernels.decode.cpu` reads, so that a block of symbols is one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambacore.block import Block
from mambacore.errors import UsageError
from mambacore.mixers.diagonal import Diagonal
from mambacore.mixers.mamba import MambaMixer, MambaState
from mambacore.mixers.s4d import S4DMixer, S4DState
from mambacore.multiscale import MultiScaleBackbone
from mambakernels.decode import cpu
from mambakernels.decode import cpu_layout as at
from mambakernels.decode.cpu_layout import pack_linear, whole_vectors

_LOG2_E = 1.4426950408889634


def why_not(backbone: MultiScaleBackbone) -> str | None:
    """Why this backbone cannot be decoded by a plan; None when it can."""
    for name, parameter in backbone.named_parameters():
        if parameter.device.type != "cpu":
            return "it is not on the CPU"
        if parameter.dtype != torch.float32:
            return f"{name} is {parameter.dtype}, not float32"
    if backbone.config.residual_dtype == "bfloat16":
        return "its residual stream is bfloat16"
    for block in backbone.modules():
        if isinstance(block, Block):
            mixer = block.mixer
            if isinstance(mixer, MambaMixer) and mixer.discretization == "euler":
                continue
            if not isinstance(mixer, S4DMixer):
                return f"there is no compiled step of its {type(mixer).__name__}"
    return None


class _Memory:
    """Grows a flat array; `put` returns where a tensor was placed."""

    def __init__(self, dtype: type, zeros: int = 0) -> None:
        self._parts: list[NDArray[Any]] = [np.zeros(zeros, dtype)]
        self._dtype = dtype
        self.size = zeros

    def put(self, values: NDArray[Any]) -> int:
        start, flat = self.size, np.ascontiguousarray(values, self._dtype).ravel()
        self._parts.append(flat)
        self.size += flat.size
        return start

    def array(self) -> NDArray[Any]:
        return np.concatenate(self._parts)


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().numpy()


def _padded(values: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """Zeros at the end of an axis up to whole vectors."""
    missing = whole_vectors(values.shape[axis]) - values.shape[axis]
    width = [(0, 0)] * values.ndim
    width[axis] = (0, missing)
    return np.pad(values, width)


def _halves(weight: NDArray[Any]) -> NDArray[Any]:
    """Each half of the first axis padded on its own, so that both begin with a whole vector."""
    return np.concatenate([_padded(half, 0) for half in np.split(weight, 2)])


@dataclass(frozen=True)
class _Place:
    """A module's carried numbers: its module and the row of the table that says where."""

    module: Any
    row: NDArray[np.int64]


class DecodingPlan:
    """Compiled decoding of ``head(backbone(embedding(symbol) + condition))``, float32 on the CPU.

    Equals the modules' own steps to rounding. The weights are copied when the plan is made.

    Args:
        backbone: Mamba (Euler) or S4D mixers in every level.
        embedding: (phases * inputs, d_model); input i in phase p is row p * inputs + i. The phase
            is the position modulo `phases`, which divides the first pool.
        head: to phases * symbols scores, those of the current phase being used.
        phases: parts that take turns; 1 for plain sequences.
        end: symbol after which a row ends; None for none.

    Raises:
        UsageError: a backbone that `why_not` names a reason for.
    """

    def __init__(
        self,
        backbone: MultiScaleBackbone,
        embedding: nn.Embedding,
        head: nn.Linear,
        *,
        phases: int = 1,
        end: int | None = None,
    ) -> None:
        reason = why_not(backbone)
        if reason:
            raise UsageError(f"this model cannot be decoded by a compiled plan: {reason}")
        self._backbone = backbone
        config = backbone.config
        widest = max(config.width(level) for level in range(len(config.mixers)))
        # Zeros first: the bias of a map without one.
        self._weights = _Memory(np.float32, zeros=whole_vectors(64 * widest + 1024))
        self._wide = _Memory(np.float64)
        self._state = self._wide_state = 0
        self._scratch = self._wide_scratch = 0
        self._blocks: list[NDArray[np.int64]] = []
        self._places: list[_Place] = []
        self._levels: list[NDArray[np.int64]] = []
        level = backbone.level
        while True:
            self._levels.append(self._add_level(level))
            if level.slowest:
                break
            level = level.below
        model = np.zeros(at.MODEL_COLUMNS, np.int64)
        model[at.EMBEDDING] = self._weights.put(_padded(_numbers(embedding.weight)))
        model[at.INPUTS] = embedding.num_embeddings // phases
        model[at.FINAL_NORM] = self._weights.put(_padded(_numbers(backbone.norm_f.weight)))
        model[at.HEAD], model[at.HEAD_BIAS] = self._add_linear(head)
        model[at.SYMBOLS] = head.out_features // phases
        model[at.PHASES], model[at.END] = phases, -1 if end is None else end
        model[at.CONDITION] = self._reserve(whole_vectors(config.d_model))
        self._scratch += 2 * whole_vectors(config.d_model) + whole_vectors(head.out_features)
        self._program = cpu.Program(
            model,
            np.stack(self._levels),
            np.stack(self._blocks),
            self._weights.array(),
            np.append(self._wide.array(), 0.0),
            float(config.norm_eps),
            self._state,
            self._wide_state + 1,
            self._scratch + 256,
            self._wide_scratch + 16,
        )

    def _reserve(self, count: int) -> int:
        start = self._state
        self._state += count
        return start

    def _add_linear(self, linear: nn.Linear, halves: bool = False) -> tuple[int, int]:
        weight = _numbers(linear.weight)
        bias = np.zeros(len(weight), np.float32) if linear.bias is None else _numbers(linear.bias)
        if halves:
            weight, bias = _halves(weight), _halves(bias)
        return self._weights.put(pack_linear(weight)), self._weights.put(_padded(bias))

    def _add_level(self, level: Any) -> NDArray[np.int64]:
        row = np.zeros(at.LEVEL_COLUMNS, np.int64)
        row[at.LEVEL_WIDTH] = level.width
        row[at.DOWN] = len(self._blocks)
        for block in level.down.blocks if not level.slowest and level.down is not None else ():
            self._add_block(block)
        row[at.DOWN_COUNT] = len(self._blocks) - row[at.DOWN]
        row[at.UP] = len(self._blocks)
        for block in level.up.blocks:
            self._add_block(block)
        row[at.UP_COUNT] = len(self._blocks) - row[at.UP]
        if not level.slowest:
            count = level.pool * level.width
            row[at.POOL] = level.pool
            row[at.POOL_DOWN], row[at.POOL_DOWN_BIAS] = self._add_linear(level.pool_down)
            row[at.POOL_UP], row[at.POOL_UP_BIAS] = self._add_linear(level.pool_up)
            row[at.PENDING], row[at.FRAME] = self._reserve(count), self._reserve(count)
            self._scratch += 3 * whole_vectors(count)
        return row

    def _add_block(self, block: Block) -> None:
        row = np.zeros(at.BLOCK_COLUMNS, np.int64)
        mixer = block.mixer
        row[at.WIDTH] = mixer.d_model
        row[at.NORM] = self._weights.put(_padded(_numbers(block.norm.weight)))
        if isinstance(mixer, MambaMixer):
            self._add_mamba(row, mixer)
        else:
            assert isinstance(mixer, S4DMixer)
            self._add_diagonal(row, mixer)
        width = whole_vectors(mixer.d_model)
        used = 32 + 6 * whole_vectors(max(mixer.d_model, int(row[at.INNER])))
        used += 2 * whole_vectors(int(row[at.RANK] + 2 * row[at.STATES]))
        if block.mlp is not None and block.norm2 is not None:
            hidden = block.mlp.fc2.in_features
            row[at.HIDDEN] = hidden
            row[at.NORM2] = self._weights.put(_padded(_numbers(block.norm2.weight)))
            row[at.FC1] = self._weights.put(pack_linear(_halves(_numbers(block.mlp.fc1.weight))))
            row[at.FC2] = self._weights.put(pack_linear(_numbers(block.mlp.fc2.weight)))
            used = max(used, 32 + 2 * width + 2 * whole_vectors(hidden))
        self._scratch = self._scratch + used
        self._blocks.append(row)
        self._places.append(_Place(mixer, row))

    def _add_mamba(self, row: NDArray[np.int64], mixer: MambaMixer) -> None:
        put, inner = self._weights.put, whole_vectors(mixer.d_inner)
        row[at.KIND], row[at.INNER] = at.MAMBA, mixer.d_inner
        row[at.STATES], row[at.RANK], row[at.TAPS] = mixer.d_state, mixer.dt_rank, mixer.d_conv
        row[at.IN], row[at.IN_BIAS] = self._add_linear(mixer.in_proj, halves=True)
        row[at.CONV] = put(_padded(_numbers(mixer.conv1d.weight)[:, 0].T))
        bias = mixer.conv1d.bias
        row[at.CONV_BIAS] = put(np.zeros(inner) if bias is None else _padded(_numbers(bias)))
        row[at.SELECT] = put(pack_linear(_numbers(mixer.x_proj.weight)))
        row[at.DELTA], row[at.DELTA_BIAS] = self._add_linear(mixer.dt_proj)
        row[at.RATES] = put(_padded(-np.exp(_numbers(mixer.A_log)).T * np.float32(_LOG2_E)))
        row[at.SKIP] = put(_padded(_numbers(mixer.D)))
        row[at.OUT], row[at.OUT_BIAS] = self._add_linear(mixer.out_proj)
        row[at.CONV_STATE] = self._reserve((mixer.d_conv - 1) * inner)
        row[at.SSM_STATE] = self._reserve(mixer.d_state * inner)

    def _add_diagonal(self, row: NDArray[np.int64], mixer: S4DMixer) -> None:
        row[at.KIND], row[at.STATES] = at.DIAGONAL, mixer.modes
        a, readout = _system(mixer)
        parts = (a.real, a.imag, readout.real, readout.imag)
        row[at.RATES] = self._wide.put(np.stack([_padded(part.T) for part in parts]))
        row[at.SKIP] = self._weights.put(_padded(_numbers(mixer.D)))
        row[at.OUT], row[at.OUT_BIAS] = self._add_linear(mixer.out_proj, halves=True)
        channels = whole_vectors(mixer.d_model)
        row[at.SSM_STATE] = self._wide_state
        self._wide_state += 2 * mixer.modes * channels
        self._wide_scratch = max(self._wide_scratch, 2 * channels)

    def start(self, rows: int, first: Tensor, condition: Tensor | None = None) -> cpu.Streams:
        """Streams at position 0.

        first: (rows,) the first inputs; condition: (rows, d_model) added to every input.
        """
        program = self._program
        streams = cpu.Streams(
            np.zeros((rows, program.state_size), np.float32),
            np.zeros((rows, program.wide_state_size), np.float64),
            np.zeros((rows, len(self._levels)), np.int64),
            first.long().numpy().astype(np.int64),
            np.zeros(rows, np.bool_),
        )
        if condition is not None:
            values, begin = _padded(_numbers(condition)), int(program.model[at.CONDITION])
            streams.state[:, begin : begin + values.shape[1]] = values
        return streams

    def resume(self, state: Any, last: Tensor, condition: Tensor | None = None) -> cpu.Streams:
        """Streams that go on after a state of the backbone; `last` (rows,) is fed next."""
        streams = self.start(last.shape[0], last, condition)
        states = iter(_carried(self._backbone.level, state, self._levels, streams))
        for place, carried in zip(self._places, states, strict=True):
            if isinstance(carried, MambaState):
                for column, values in (
                    (at.CONV_STATE, carried.conv),
                    (at.SSM_STATE, carried.ssm.transpose(1, 2)),
                ):
                    _write(streams.state, int(place.row[column]), _padded(_numbers(values)))
            elif isinstance(carried, S4DState):
                entering = _discrete(place.module).b
                ssm = (carried.ssm.detach().to(entering.dtype) / entering).transpose(1, 2)
                parts = torch.view_as_real(ssm).permute(0, 3, 1, 2).numpy()
                _write(streams.wide_state, int(place.row[at.SSM_STATE]), _padded(parts))
        return streams

    def generate(
        self,
        streams: cpu.Streams,
        uniforms: NDArray[np.float64],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        core_temperature: float = 1.0,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Symbols (rows, n) and their log-probabilities in nats; see `mambakernels.decode.cpu`.

        With guidance other than 1 there are two streams for each row, the untold ones last.
        """
        return cpu.generate(
            self._program,
            streams,
            uniforms,
            temperature=float(temperature),
            top_k=top_k or 0,
            top_p=1.0 if top_p is None else float(top_p),
            guidance=float(guidance),
            core_temperature=float(core_temperature),
        )

    def score(self, streams: cpu.Streams, symbols: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores (rows, n, V) beside given symbols (rows, n)."""
        return cpu.score(self._program, streams, symbols)


def _write(memory: NDArray[Any], begin: int, values: NDArray[Any]) -> None:
    flat = values.reshape(len(values), -1)
    memory[:, begin : begin + flat.shape[1]] = flat


def _discrete(mixer: S4DMixer) -> Diagonal:
    with torch.no_grad():
        return Diagonal.discretise(
            mixer.log_dt.double(), mixer.log_A_real.double(), mixer.A_imag.double(),
            mixer.C.double(),
        )  # fmt: skip


def _system(mixer: S4DMixer) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """a and 2 c b: the state is kept in units of b, so that the input enters unweighted."""
    system = _discrete(mixer)
    return system.log_a.exp().numpy(), (2 * system.c * system.b).numpy()


def _carried(
    level: Any, state: Any, table: list[NDArray[np.int64]], streams: cpu.Streams, depth: int = 0
) -> list[Any]:
    """The mixers' states in the order of the blocks; writes pending frames and positions."""
    if level.slowest:
        return list(state) if state is not None else [None] * len(level.up.blocks)
    below = _carried(level.below, None if state is None else state.below, table, streams, depth + 1)
    if state is None:
        empty = [] if level.down is None else [None] * len(level.down.blocks)
        return [*empty, *[None] * len(level.up.blocks), *below]
    pending, frame = _numbers(state.pending), _numbers(state.frame)
    _write(streams.state, int(table[depth][at.PENDING]), pending)
    _write(streams.state, int(table[depth][at.FRAME]), frame)
    streams.positions[:, depth] = pending.shape[1]
    return [*(state.down or ()), *state.up, *below]
