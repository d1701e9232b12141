"""What a training step needs in memory and time, from a written formula.

Letters: T positions (batch x length), d d_model, E inner channels, N states, R rank of delta,
V vocabulary, H hidden width of the MLP; a and r bytes of an activation and of the residual stream
(4 and 4; 2 under autocast for a, 2 with a bfloat16 stream for r). With the fused Mamba mixer, which
a GPU uses:

    kept, a branch (mixer or MLP)
        none        T d r + T d a + S     the stream, the branch's input, the scan's states
        selective   T d r + S             S = 4 E (N + 1) a chunk of the scan and row
        block       T d r
        and T d with dropout but for `block`; an MLP keeps T 4 H a more with `none`
    kept beside: T d r for the last norm, 8 T for the token ids
    backward pass of a mixer over t <= T positions (a piece)
        t a (9 E + R + 4 N + d) + 8 t N groups + S(t) + scratch
        and the gradients that come in, T d (a + r), T d a where a = r; with pieces T d a more
    forward pass of the last block, whose norm after it is still to come (- T d r)
        4 T d the float32 embeddings, which their caller holds meanwhile; 0 where they are the
                stream of the first block (a float32 stream)
        T d a   the block's input, and then the larger of
        mixer   t a (5 E + R + 2 N + 2 d), with pieces also T d r + (T - t) d a
        pieces  T d (2 a + 2 r): the stream that came in, and output and stream once in pieces and
                once joined, of which the pieces of the stream are kept anyway
    head, with its gradient
        pooling T d (a + 8), a float64 copy; chunked loss 2 T d a; whole logits
        2 T d a + T V (2 a + 12)

The largest moment is the backward pass of the last block, while everything is still kept; the
head's, if that is larger; or, with many pieces, the end of the forward pass: what one piece's
backward pass takes does not grow with the length, but joining the pieces does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from mambacore.checkpointing import MODES
from mambacore.config import ModelConfig
from mambacore.errors import UsageError

PIECE = 1 << 18
"""Positions that a block takes at a time when memory is short: enough to fill a GPU."""

HEADS = ("pooling", "chunked", "logits")
_LOSS_CHUNK = 1 << 22  # logits at a time of `mambacore.losses`

# Training one channel of one mamba layer over one position, on an NVIDIA H200 under bfloat16:
# 290.0 ms for d256 n8 at 1 x 2^20 (`kernels/README.md`).
_SECONDS = 0.2900 / (8 * 512 * 2**20)
_MORE_TIME = {"none": 1.0, "selective": 1.01, "block": 1.28}


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    parameters, gradients, optimizer: float32, and AdamW's two moments. activations: what is kept
    from the forward pass to the backward pass. block: the most that one block's backward pass
    adds. forward: the most that the forward pass adds to what is kept after it. loss: what the
    head, the loss and their gradients add. total: the most at one moment.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    block: int
    forward: int
    loss: int

    @property
    def total(self) -> int:
        """Bytes at the largest moment."""
        weights = self.parameters + self.gradients + self.optimizer
        return weights + self.activations + max(self.block, self.forward, self.loss)


def memory_of_training(
    config: ModelConfig,
    batch: int,
    length: int,
    *,
    checkpointing: str = "none",
    residual_dtype: str | None = None,
    autocast: bool = True,
    piece: int | None = None,
    head: str = "pooling",
    backend: str = "triton",
) -> Memory:
    """Memory of one training step with AdamW, in bytes, as the module's formula has it.

    Args:
        config: the backbone's, of mamba mixers, bidirectional ones of them too; the embedding
            counts if it has a vocabulary.
        batch, length: rows and positions.
        checkpointing, piece: as in `mambacore.checkpointing.set_checkpointing`.
        residual_dtype: in place of the config's.
        autocast: activations in bfloat16; else in float32.
        head: what stands on the backbone: "pooling" (a classifier), "chunked"
            (`mambacore.losses`) or "logits" (whole logits and their softmax).
        backend: of the scan, "triton" or "cpu", which keep different notes.

    Raises:
        UsageError: a mixer that the formula does not cover, or an unknown name.

    What the allocator rounds up and keeps in reserve, and the CUDA context (about half a
    gibibyte), come on top.

    >>> config = ModelConfig(d_model=256, n_layer=8, residual_dtype="bfloat16")
    >>> step = memory_of_training(config, 1, 2**20, checkpointing="block", piece=PIECE)
    >>> round(step.total / 2**30)
    8
    """
    if checkpointing not in MODES:
        raise UsageError(f"checkpointing {checkpointing!r} is not one of {', '.join(MODES)}")
    if head not in HEADS:
        raise UsageError(f"head {head!r} is not one of {', '.join(HEADS)}")
    a = 2 if autocast else 4
    residual = residual_dtype or config.residual_dtype
    r = {"float32": 4, "bfloat16": 2, "model": a}[residual]
    d, positions = config.d_model, batch * length
    stream, branch_input = positions * d * r, positions * d * a
    mask = positions * d if config.dropout and checkpointing != "block" else 0
    mlp_kept, mlp_working = _mlp(config, positions, checkpointing, stream, branch_input)
    # Of the same dtype, the gradients of both addends are one tensor.
    gradients = branch_input + (stream if a != r else 0)
    weights_of_layer = parameter_count(config) // config.n_layer

    kept = stream + 8 * positions
    embeddings = 4 * positions * d
    if residual != "bfloat16":  # then they are the first block's stream
        kept += embeddings - stream if residual == "model" else 0
        embeddings = 0
    most = forward = 0
    for name in config.layer_names:
        mixer = _Mixer.of(config, name)
        split = piece is not None and mixer.directions == 1
        span = min(length, max(1, (piece or length) // batch)) if split else length
        own = mixer.kept(batch, length, span, a, backend)
        if autocast:  # each piece casts the weights
            own += 2 * weights_of_layer * -(-length // span)
        own = {"none": branch_input + own, "selective": own, "block": 0}[checkpointing]
        kept += stream + own + mask + mlp_kept
        working = mixer.backward(batch, span, a, backend)
        if checkpointing == "none":  # there the input is kept, not computed again
            working -= batch * span * d * a
        # With pieces, gradients of earlier ones wait, but what these pieces kept is gone.
        waiting = branch_input if span < length else 0
        most = max(most, gradients + waiting + working - mlp_kept)
        most = max(most, gradients + mlp_working * span // length)
        inside = max(mixer.forward(batch, span, a), _mlp_forward(config, batch * span, a))
        of_piece = batch * span * d * a
        if checkpointing != "none":
            inside += of_piece
        if span < length:
            # Output and stream lie there in pieces and are then joined; the stream came in joined.
            joined = 2 * branch_input + stream
            inside = stream + max(inside + branch_input - of_piece, joined)
        forward = max(forward, embeddings + branch_input + inside)
    weights = 4 * parameter_count(config)
    return Memory(
        parameters=weights,
        gradients=weights,
        optimizer=2 * weights,
        activations=kept,
        block=most - stream,  # the last norm's is gone by then
        forward=forward - stream,  # and not yet there in the forward pass
        loss=_head(config, head, positions, a),
    )


def _mlp(
    config: ModelConfig, positions: int, mode: str, stream: int, branch_input: int
) -> tuple[int, int]:
    """Bytes that an MLP keeps, and the most that its backward pass adds."""
    if not config.mlp_expand:
        return 0, 0
    hidden = branch_input * max(1, round(config.mlp_expand * config.d_model)) // config.d_model
    inside = branch_input + 4 * hidden
    mask = positions * config.d_model if config.dropout else 0
    if mode == "none":
        return stream + inside + mask, 5 * hidden
    return stream, inside + mask + 5 * hidden


def _mlp_forward(config: ModelConfig, positions: int, a: int) -> int:
    """What an MLP's forward pass makes: two halves, the gate, their product, the output."""
    if not config.mlp_expand:
        return 0
    return positions * a * (4 * round(config.mlp_expand * config.d_model) + config.d_model)


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the backbone, and of the embedding where there is a vocabulary."""
    backbone = dataclasses.replace(config, vocab_size=None)
    count = _backbone_parameters(json.dumps(backbone.to_dict(), sort_keys=True))
    if config.vocab_size is not None:
        count += config.padded_vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    return count


@lru_cache(maxsize=64)
def _backbone_parameters(config: str) -> int:
    from mambacore.backbone import Backbone

    with torch.device("meta"):
        model = Backbone(ModelConfig.from_dict(json.loads(config)))
    return sum(p.numel() for p in model.parameters())


def _head(config: ModelConfig, head: str, positions: int, a: int) -> int:
    hidden = positions * config.d_model * a
    if head == "pooling":  # of a mean the sum is in float64, for which PyTorch makes a copy
        return hidden + 8 * positions * config.d_model
    logits = positions * (config.vocab_size or 1)
    if head == "chunked":
        return 2 * hidden + 12 * min(logits, _LOSS_CHUNK)
    return 2 * hidden + logits * (2 * a + 12)


@dataclass(frozen=True)
class _Mixer:
    """Sizes of a mamba mixer, or of two of them in a bidirectional one."""

    d: int
    E: int
    N: int
    R: int
    directions: int

    @classmethod
    def of(cls, config: ModelConfig, name: str) -> _Mixer:
        options: Mapping[str, Any] = config.mixer_options.get(name, {})
        directions = 1
        if name == "bidirectional":
            name, options = options.get("inner", "mamba"), options.get("inner_options") or {}
            directions = 2
        if name != "mamba":
            raise UsageError(
                f"there is no memory formula for the mixer {name!r}; it covers mamba, and "
                "bidirectional of mamba"
            )
        d = config.d_model
        rank = options.get("dt_rank", "auto")
        return cls(
            d,
            int(options.get("expand", 2) * d),
            options.get("d_state", 16),
            math.ceil(d / 16) if rank == "auto" else int(rank),
            directions,
        )

    def kept(self, batch: int, length: int, span: int, a: int, backend: str) -> int:
        """Bytes kept besides the input: the scan's states over all pieces, a reversed input."""
        reverse = batch * length * self.d * a * (self.directions - 1)
        if backend != "triton":
            return reverse
        whole, rest = divmod(length, span)
        states = whole * self._states(batch, span) + (self._states(batch, rest) if rest else 0)
        return reverse + self.directions * states

    def _states(self, batch: int, length: int) -> int:
        chunks = -(-length // _chunks(batch, length, self.E, self.N)[0])
        return 4 * batch * chunks * (self.N + 1) * self.E if chunks > 1 else 0

    def forward(self, batch: int, span: int, a: int) -> int:
        """What the fused mixer's forward pass makes, its output with it."""
        t = batch * span
        return t * a * (5 * self.E + self.R + 2 * self.N + self.d * (2 * self.directions - 1))

    def backward(self, batch: int, span: int, a: int, backend: str) -> int:
        """The most that the fused mixer's backward pass holds, with its input computed again."""
        t, E, N = batch * span, self.E, self.N
        inner = t * a * (9 * E + self.R + 4 * N + self.d)
        if self.directions > 1:  # the gradient of the other direction, and what is turned
            inner += 2 * t * self.d * a
        if backend != "triton":  # the scan's states again, and parts by group of channels
            groups = min(-(-E // 16), -(-8 // batch))
            return inner + 4 * batch * -(-span // 64) * E * N + 8 * t * N * groups
        chunk, group = _chunks(batch, span, E, N)
        groups = -(-E // (64 * group))
        programs = min(1056, batch * -(-span // chunk) * groups)
        scratch = 4 * programs * (chunk // 8) * N * 64
        return inner + 8 * t * N * groups + self._states(batch, span) + scratch


def _chunks(batch: int, length: int, channels: int, states: int) -> tuple[int, int]:
    """Steps of the scan's chunks, and blocks of channels that share a sum: the kernels' choice."""
    try:
        from mambakernels.scan.triton_problem import choose
    except ImportError:  # no Triton here: its usual choice
        return 256, 4
    tuning = choose(batch, length, channels, states)
    return tuning.chunk, tuning.group


def checkpointing_for(
    config: ModelConfig, batch: int, length: int, budget: int, **settings: Any
) -> tuple[str, int | None]:
    """The fastest (mode, piece) whose step stays within `budget` bytes; the smallest if none does.

    Args:
        config, batch, length, settings: as in `memory_of_training`.
        budget: bytes.

    >>> config = ModelConfig(d_model=256, n_layer=8)
    >>> [checkpointing_for(config, 1, 2**20, gib << 30)[0] for gib in (40, 16, 8)]
    ['none', 'selective', 'block']
    """
    for mode, piece in (("none", None), ("selective", PIECE), ("block", PIECE)):
        need = memory_of_training(
            config, batch, length, checkpointing=mode, piece=piece, **settings
        )
        if need.total <= budget:
            break
    return mode, piece


def longest_that_fits(
    config: ModelConfig, batch: int, budget: int, *, multiple: int = 1024, **settings: Any
) -> int:
    """The largest length, a multiple of `multiple`, whose step fits in `budget` bytes; 0 if none.

    Args:
        config, batch, settings: as in `memory_of_training`.
        budget: bytes.
        multiple: how finely to look.
    """

    def fits(count: int) -> bool:
        need = memory_of_training(config, batch, count * multiple, **settings)
        return need.total <= budget

    low, high = 0, 1
    while high < 1 << 24 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * multiple


def seconds_per_token(
    config: ModelConfig,
    *,
    checkpointing: str = "none",
    throughput: float | None = None,
    measured: ModelConfig | None = None,
) -> float:
    """Seconds of a training step for each position.

    The work is proportional to layers x inner channels (and, little, to the states), because the
    scan is what a step waits for. Without a measurement: one NVIDIA H200 under bfloat16 autocast.

    Args:
        config: the model to predict for.
        checkpointing: as in `mambacore.checkpointing.set_checkpointing`.
        throughput: positions a second that `measured` reached without checkpointing.
        measured: that model; `config` itself by default.

    >>> config = ModelConfig(d_model=256, n_layer=8)
    >>> round(1e3 * 2**20 * seconds_per_token(config))
    290
    >>> double = ModelConfig(d_model=256, n_layer=16)
    >>> 1 / seconds_per_token(double, throughput=100.0, measured=config)
    50.0
    """
    each = _SECONDS * _work(config)
    if throughput is not None:
        each = _work(config) / _work(measured or config) / throughput
    return each * _MORE_TIME[checkpointing]


def _work(config: ModelConfig) -> float:
    sizes = [_Mixer.of(config, name) for name in config.layer_names]
    return sum(s.directions * s.E * (0.25 + 0.75 * s.N / 16) for s in sizes)
