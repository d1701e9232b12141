"""The time-invariant mixer: a complex diagonal state space model per channel.

Shape suffixes: B batch, L length, d channels, n complex modes a channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambacore.errors import UsageError
from mambacore.init import complex_a, log_uniform
from mambacore.mixers.base import Mixer
from mambacore.mixers.chunked import convolve_chunks
from mambacore.mixers.diagonal import Diagonal, convolve, respond, scan_segments, step
from mambacore.mixers.registry import register_mixer
from mambacore.parallel import handover
from mambacore.precision import accumulate_dtype
from mambacore.segments import continues, keep_rows, last_segment, runs

if TYPE_CHECKING:
    from mambacore.parallel import SequenceGroup

MAX_BLOCK = 1 << 14
# Positions of all rows from which a CPU gains by chunks; below, their tables cost more than an FFT.
_CHUNKS_FROM_CPU = 1 << 15
_SCAN_CHUNK = 16
# Of the largest temporary in one block of the scan with segments: the cache's size on a CPU, enough
# work to fill the device elsewhere.
_SCAN_BYTES_CPU = 8 << 20
_SCAN_BYTES = 256 << 20


class S4DState(NamedTuple):
    """What an `S4DMixer` carries.

    ssm: (batch, d_model, modes) complex64 (complex128 in a float64 model).
    segment: (batch,) int64 id of the segment that the state belongs to.
    """

    ssm: Tensor
    segment: Tensor


@register_mixer("s4d")
class S4DMixer(Mixer):
    """S4D: a linear time-invariant system in every channel, mixed by a gated linear map.

    ::

        h_t = exp(delta A) h_{t-1} + (exp(delta A) - 1) / A u_t      A complex, (d_model, modes)
        y_t = 2 Re(C h_t) + D u_t
        out = GLU(out_proj(gelu(y)))

    A sequence is cut into chunks of 128 positions, which are matrix products. On a CPU, fewer than
    2^15 positions (of all rows) are convolved by FFT, in blocks with the state carried between
    them: one transform over all would leak its rounding error back in time. The kernel of a block
    comes from two short tables of powers, never from a (d_model, modes, length) product. A single
    position runs the recurrence. With segments it is a chunked scan, since neither of the two
    resets. All of it in float32 whatever the input's dtype (float64 for float64).

    Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models"
    (arXiv 2206.11893), with its zero-order hold and S4's GELU and GLU output.

    Args:
        d_model: channels.
        d_state: real states a channel; half as many complex modes, each with its conjugate.
        dt_min, dt_max: the channels' steps begin log-uniform between the two.
        a_init: "s4d-lin", A_n = -1/2 + i pi n, or "s4d-real", A_n = -(n + 1).
        block: positions in one FFT block, at most 2^14.

    Attributes:
        convolution: "fft", "chunks", or "auto", which chooses by device and size.

    >>> mixer = S4DMixer(4, d_state=8)
    >>> x = torch.randn(2, 6, 4)
    >>> whole, _ = mixer(x)
    >>> head, state = mixer(x[:, :5])
    >>> tail, state = mixer(x[:, 5:], state)
    >>> torch.allclose(whole, torch.cat([head, tail], dim=1), atol=1e-5)
    True
    """

    constant_state = True
    splits = True
    float32_parameters = ("log_dt", "log_A_real", "A_imag", "C", "D")
    no_decay_parameters = ("log_dt", "log_A_real", "A_imag", "D")
    convolution: Literal["auto", "fft", "chunks"] = "auto"

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        a_init: str = "s4d-lin",
        block: int = MAX_BLOCK,
    ) -> None:
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise UsageError(f"d_state must be even and at least 2 (complex pairs), not {d_state}")
        if not 1 <= block <= MAX_BLOCK:
            raise UsageError(f"block must be between 1 and {MAX_BLOCK}, not {block}")
        self.d_model = d_model
        self.modes = d_state // 2
        self.block = block
        real, imaginary = complex_a(a_init, d_model, self.modes)
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max).log())
        self.log_A_real = nn.Parameter(real.log())
        self.A_imag = nn.Parameter(imaginary)
        # Real and imaginary part: optimisers and casts then need no care for complex numbers.
        self.C = nn.Parameter(torch.randn(d_model, self.modes, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def forward(
        self,
        x: Tensor,
        state: S4DState | None = None,
        *,
        segment_ids: Tensor | None = None,
        group: SequenceGroup | None = None,
    ) -> tuple[Tensor, S4DState]:
        """See `Mixer`; the state is complex, differentiable in and out.

        group: who holds the sequence that x is a part of; by default `sequence_group`.
        """
        self._check(x, segment_ids)
        group = group or self.sequence_group
        if group is not None:
            self._check_group(state)
        if state is None:
            carried = None
            segment = handover.edges(segment_ids, x)[:, 0]
        else:
            self._check_state(state, S4DState, x.shape[0])
            carried = keep_rows(state.ssm, continues(segment_ids, state.segment))
            carried = carried.transpose(0, 1)
            segment = state.segment
        # Autocast would round the tables of powers to bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            u = x.permute(2, 0, 1)
            system = Diagonal.discretise(self.log_dt, self.log_A_real, self.A_imag, self.C)
            y, ssm = self._filter(system, u, carried, segment, segment_ids)
            if group is not None:
                y, ssm = self._receive(system, y, ssm, segment_ids, group)
            y = F.gelu(y).permute(1, 2, 0)
        y = F.glu(self.out_proj(y.to(x.dtype)), dim=-1)
        return y, S4DState(ssm.transpose(0, 1), last_segment(segment_ids, segment))

    def initial_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> S4DState:
        device, dtype = self._place(device, dtype)
        double = dtype == torch.float64
        return S4DState(
            torch.zeros(
                batch,
                self.d_model,
                self.modes,
                device=device,
                dtype=torch.complex128 if double else torch.complex64,
            ),
            torch.zeros(batch, device=device, dtype=torch.int64),
        )

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        # The gate's half must keep its size: the product is what the residual stream receives.
        self.out_proj.weight[: self.d_model].mul_(factor)

    def _filter(
        self,
        system: Diagonal,
        u: Tensor,
        carried: Tensor | None,
        segment: Tensor,
        segment_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """y (d, B, L) and the final state (d, B, n), from u (d, B, L) of any dtype."""
        length = u.shape[-1]
        if segment_ids is None and length > 1 and self._in_chunks(u):
            return convolve_chunks(system, self.D, u, carried)
        u = u.to(accumulate_dtype(u.dtype))
        skipped = self.D[:, None, None] * u
        if length == 1:
            y, carried = step(system, u, carried)
            return y + skipped, carried
        if segment_ids is None:
            tables = system.tables(min(self.block, length))
            outputs = []
            for start in range(0, length, self.block):
                y, carried = convolve(system, tables, u[..., start : start + self.block], carried)
                outputs.append(y)
        else:
            numbers = runs(segment_ids, segment)
            block = self._scan_block(u)
            before = torch.zeros_like(segment)
            outputs = []
            for start in range(0, length, block):
                part = slice(start, start + block)
                # Recomputed in the backward: the masked kernels are much larger than the input.
                outcome = checkpoint(
                    scan_segments,
                    system,
                    u[..., part],
                    carried,
                    numbers[:, part],
                    before,
                    _SCAN_CHUNK,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                y, carried = cast(tuple[Tensor, Tensor], outcome)
                before = numbers[:, part][:, -1]
                outputs.append(y)
        assert carried is not None
        y = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        return y + skipped, carried

    def _in_chunks(self, u: Tensor) -> bool:
        if self.convolution == "auto":
            return u.device.type != "cpu" or u.shape[1] * u.shape[2] >= _CHUNKS_FROM_CPU
        return self.convolution == "chunks"

    def _receive(
        self,
        system: Diagonal,
        y: Tensor,
        ssm: Tensor,
        segment_ids: Tensor | None,
        group: SequenceGroup,
    ) -> tuple[Tensor, Tensor]:
        """Outputs and final state of a part, with what the state from the parts before adds."""
        length = y.shape[-1]
        decay = system.power(length)[:, None].expand_as(ssm)
        goes_on = None
        if segment_ids is not None:
            goes_on = (segment_ids == segment_ids[:, :1]).cumprod(1).bool()
            decay = torch.where(goes_on[:, -1:], decay, decay.new_zeros(()))
        carried = handover.carry_state(
            group, decay.transpose(0, 1), ssm.transpose(0, 1), segment_ids
        ).transpose(0, 1)
        tables = system.tables(min(self.block, length))
        added = torch.cat(
            [
                respond(
                    system,
                    tables,
                    system.power(start)[:, None] * carried,
                    min(self.block, length - start),
                )
                for start in range(0, length, self.block)
            ],
            dim=-1,
        )
        if goes_on is not None:
            added = torch.where(goes_on, added, added.new_zeros(()))
        return y + added, ssm + decay * carried

    @staticmethod
    def _scan_block(u: Tensor) -> int:
        """Positions whose masked kernels, `_SCAN_CHUNK` numbers each, stay within the budget."""
        channels, batch, _ = u.shape
        position = channels * batch * _SCAN_CHUNK * u.element_size()
        budget = _SCAN_BYTES_CPU if u.device.type == "cpu" else _SCAN_BYTES
        chunks = budget // (position * _SCAN_CHUNK)
        return min(max(chunks, 1) * _SCAN_CHUNK, MAX_BLOCK)
