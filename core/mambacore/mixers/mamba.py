"""The selective state space mixer (S6 with its gate and short convolution).

Shape suffixes: B batch, L length, E inner channels (expand * d_model), N states a channel,
W convolution width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambacore.errors import UsageError
from mambacore.init import inverse_softplus, log_uniform, real_a_log
from mambacore.mixers.base import Mixer
from mambacore.mixers.registry import register_mixer
from mambacore.parallel import handover
from mambacore.precision import accumulate_dtype
from mambacore.segments import continues, keep_rows, last_segment
from mambakernels import (
    causal_conv1d,
    mamba_mixer,
    scan_summary,
    selective_scan,
    selective_state_step,
)

if TYPE_CHECKING:
    from mambacore.parallel import SequenceGroup


class MambaState(NamedTuple):
    """What a `MambaMixer` carries: of constant size, whatever the length so far.

    conv: (batch, W - 1, E) last inputs of the convolution, in the activations' dtype.
    ssm: (batch, E, N) state of the recurrence, float32 (float64 in a float64 model).
    segment: (batch,) int64 id of the segment that the state belongs to.
    """

    conv: Tensor
    ssm: Tensor
    segment: Tensor


@register_mixer("mamba")
class MambaMixer(Mixer):
    """Mamba's mixer: a gated, selective, diagonal state space model behind a short convolution.

    ::

        u, z = in_proj(x);   u = silu(conv1d(u));   delta, B, C = x_proj(u)
        delta = softplus(dt_proj(delta))
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;   y_t = C_t h_t + D u_t
        out = out_proj(y * silu(z))

    Parameter names and shapes are those of `mamba_ssm.Mamba`. Algorithm 2 and figure 3 of the
    Mamba paper (arXiv 2312.00752).

    Args:
        d_model: width of input and output.
        d_state: N, states a channel.
        d_conv: W, width of the causal convolution.
        expand: inner channels in units of d_model.
        dt_rank: rank of the projection to delta; "auto" is ceil(d_model / 16).
        dt_min, dt_max: softplus(dt_proj.bias) begins log-uniform between the two.
        dt_init: "random" or "constant" start of dt_proj.weight, of size dt_scale / sqrt(dt_rank).
        dt_scale: factor on dt_proj's start.
        dt_init_floor: smallest starting delta.
        conv_bias: the convolution has a bias.
        bias: in_proj and out_proj have one.
        a_init: "s4d-real", A_n = -(n + 1), or "s4d-lin", A_n = -1/2.
        discretization: "euler" (Mamba's) or "zoh" for the input's matrix.
        backend: of the kernels; None picks by device.
        recompute: keep only the mixer's input for the backward pass and compute the rest again;
            None does so on a GPU, where memory is what long sequences run out of.

    A_log, D and dt_proj.bias stay float32 in half-precision models.

    >>> mixer = MambaMixer(8, d_state=4)
    >>> x = torch.randn(2, 5, 8)
    >>> whole, _ = mixer(x)
    >>> head, state = mixer(x[:, :3])
    >>> tail, state = mixer(x[:, 3:], state)
    >>> torch.allclose(whole, torch.cat([head, tail], dim=1), atol=1e-6)
    True
    """

    constant_state = True
    casts_input = True
    splits = True
    keeps_input_alone = False  # set by `mambacore.checkpointing`; `recompute` comes first
    float32_parameters = ("A_log", "D", "dt_proj.bias")
    no_decay_parameters = ("A_log", "D", "dt_proj.bias")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        a_init: str = "s4d-real",
        discretization: Literal["euler", "zoh"] = "euler",
        backend: str | None = None,
        recompute: bool | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        if min(d_state, d_conv, self.d_inner, self.dt_rank) < 1:
            raise UsageError(
                "d_state, d_conv, expand * d_model and dt_rank must be at least 1, not "
                f"{d_state}, {d_conv}, {self.d_inner}, {self.dt_rank}"
            )
        if discretization not in ("euler", "zoh"):
            raise UsageError(f"discretization {discretization!r} is not one of euler, zoh")
        if dt_init not in ("random", "constant"):
            raise UsageError(f"dt_init {dt_init!r} is not one of random, constant")
        self.discretization: Literal["euler", "zoh"] = discretization
        self.backend = backend
        self.recompute = recompute

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        # A container of weight and bias in mamba_ssm's shapes; the kernel does the convolution.
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True)
        self.A_log = nn.Parameter(real_a_log(a_init, self.d_inner, d_state))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

        bound = self.dt_rank**-0.5 * dt_scale
        delta = log_uniform(self.d_inner, dt_min, dt_max).clamp(min=dt_init_floor)
        with torch.no_grad():
            if dt_init == "random":
                self.dt_proj.weight.uniform_(-bound, bound)
            else:
                self.dt_proj.weight.fill_(bound)
            self.dt_proj.bias.copy_(inverse_softplus(delta))

    def forward(
        self,
        x: Tensor,
        state: MambaState | None = None,
        *,
        segment_ids: Tensor | None = None,
        group: SequenceGroup | None = None,
    ) -> tuple[Tensor, MambaState]:
        """See `Mixer`; the state's tensors are differentiable in and out.

        group: who holds the sequence that x is a part of; by default `sequence_group`.
        """
        self._check(x, segment_ids)
        group = group or self.sequence_group
        if group is not None:
            self._check_group(state)
            if self._recomputes(x):
                handing = handover.MixerHandover(group, segment_ids)
                y, conv, ssm = self._mix_as_one(x, None, None, segment_ids, handing)
            else:
                y, conv, ssm = self._mix_part(x, segment_ids, group)
            return y, MambaState(conv, ssm, handover.edges(segment_ids, x)[:, 1])
        if state is None:
            conv = ssm = None
            segment = x.new_zeros(x.shape[0], dtype=torch.int64)
        else:
            self._check_state(state, MambaState, x.shape[0])
            kept = continues(segment_ids, state.segment)
            conv, ssm = keep_rows(state.conv, kept), keep_rows(state.ssm, kept)
            segment = state.segment
            if x.shape[1] == 1 and not torch.is_grad_enabled():
                y, conv, ssm = self._step(x[:, 0], conv, ssm)
                return y[:, None], MambaState(conv, ssm, last_segment(segment_ids, segment))
        mix = self._mix_as_one if self._recomputes(x) else self._mix
        y, conv, ssm = mix(x, conv, ssm, segment_ids)
        return y, MambaState(conv, ssm, last_segment(segment_ids, segment))

    def initial_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MambaState:
        device, dtype = self._place(device, dtype)
        return MambaState(
            torch.zeros(batch, self.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            torch.zeros(
                batch, self.d_inner, self.d_state, device=device, dtype=accumulate_dtype(dtype)
            ),
            torch.zeros(batch, device=device, dtype=torch.int64),
        )

    def _recomputes(self, x: Tensor) -> bool:
        """Whether only the mixer's input is kept for the backward pass."""
        wanted = self.recompute
        if wanted is None:
            wanted = x.is_cuda or self.keeps_input_alone
        return wanted and torch.is_grad_enabled() and x.shape[1] > 0

    def _mix(
        self, x: Tensor, conv: Tensor | None, ssm: Tensor | None, segment_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv_after = causal_conv1d(
            u,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            initial_state=conv,
            return_final_state=True,
            segment_ids=segment_ids,
            backend=self.backend,
        )
        delta, B, C = self._selection(u)
        y, ssm_after = selective_scan(
            u,
            delta,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            discretization=self.discretization,
            initial_state=ssm,
            return_final_state=True,
            segment_ids=segment_ids,
            backend=self.backend,
        )
        return self.out_proj(y), conv_after, ssm_after

    def _mix_part(
        self, x: Tensor, segment_ids: Tensor | None, group: SequenceGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One part of a sequence: what the part does to a state is known from `scan_summary`, so
        that all parts are scanned at the same time. The gradient runs the scan backward twice, as
        that of the summary and as that of the outputs; `_mix_as_one` does without that."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv_after = causal_conv1d(
            u,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            initial_state=handover.carry_inputs(group, u, self.d_conv - 1, segment_ids),
            return_final_state=True,
            segment_ids=segment_ids,
            backend=self.backend,
        )
        delta, B, C = self._selection(u)
        A, bias = -torch.exp(self.A_log), self.dt_proj.bias
        summary = scan_summary(
            u,
            delta,
            A,
            B,
            bias,
            delta_softplus=True,
            discretization=self.discretization,
            segment_ids=segment_ids,
            backend=self.backend,
        )
        y, ssm_after = selective_scan(
            u,
            delta,
            A,
            B,
            C,
            self.D,
            z,
            bias,
            delta_softplus=True,
            discretization=self.discretization,
            initial_state=handover.carry_state(group, summary.decay, summary.state, segment_ids),
            return_final_state=True,
            segment_ids=segment_ids,
            summary=summary,
            backend=self.backend,
        )
        return self.out_proj(y), conv_after, ssm_after

    def _mix_as_one(
        self,
        x: Tensor,
        conv: Tensor | None,
        ssm: Tensor | None,
        segment_ids: Tensor | None,
        handing: handover.MixerHandover | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return mamba_mixer(
            x,
            self.in_proj.weight,
            self.in_proj.bias,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            -torch.exp(self.A_log),
            self.D,
            self.dt_proj.bias,
            self.out_proj.weight,
            self.out_proj.bias,
            conv_state=conv,
            ssm_state=ssm,
            segment_ids=segment_ids,
            handover=handing,
            discretization=self.discretization,
            backend=self.backend,
        )

    def _step(self, x: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One position, x (batch, d_model), without the machinery of a sequence."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        window = torch.cat([conv, u[:, None]], dim=1)
        wide = accumulate_dtype(u.dtype)
        weight = self.conv1d.weight[:, 0].t().to(wide)
        summed = (window.to(wide) * weight).sum(dim=1)
        if self.conv1d.bias is not None:
            summed = summed + self.conv1d.bias
        u = F.silu(summed).to(u.dtype)
        delta, B, C = self._selection(u)
        y, ssm = selective_state_step(
            ssm,
            u,
            delta,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            discretization=self.discretization,
            backend=self.backend,
        )
        return self.out_proj(y), window[:, 1:], ssm

    def _selection(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta before its bias and softplus, B and C: what makes the recurrence selective."""
        parts = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(parts[0], self.dt_proj.weight), parts[1], parts[2]
