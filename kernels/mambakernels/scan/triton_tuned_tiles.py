"""What the tuned kernels share: tiles of time by channels that lie in a thread's registers.

A program is one warp. A tile (STEPS, 32 x WIDE) gives each thread WIDE neighbouring channels and
all of the tile's steps, so a recurrence over time is plain arithmetic on registers: `rows` takes a
tile apart into steps, `tile_of` puts it together, and neither moves anything. The loop over the
states is the outer one: a state's numbers for B and C, the same for every channel, come from
shared memory in vectors of steps, and a kernel's size does not depend on the number of states.

Written in Gluon, Triton's layer below: plain Triton offers no say in how a tile lies in threads.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Arguments that change with a sequence's length: no reason to compile a kernel again.
SIZES = ("length", "chunks", "chunk_length", "count", "items", "programs")
LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
# Added to an exponent to make the decay zero; finite, so that sums of it make no NaN.
RESET = gl.constexpr(-1e30)


@gluon.constexpr_function
def tile_layout(steps, wide):
    return gl.BlockedLayout([steps, wide], [1, 32], [1, 1], [0, 1])


@gluon.constexpr_function
def row_layout(steps, wide):
    """Of a row of channels, as the tile has them."""
    return gl.SliceLayout(0, tile_layout(steps, wide))


@gluon.constexpr_function
def step_layout(steps, wide):
    """Of a column of steps: every thread has all of them."""
    return gl.SliceLayout(1, tile_layout(steps, wide))


@gluon.constexpr_function
def flat(dimensions):
    return gl.SwizzledSharedLayout(1, 1, 1, list(reversed(range(dimensions))))


@gluon.constexpr_function
def state_layout(states, steps):
    """How a tile (states, steps) of B or C is read: neighbouring states in a thread."""
    near = min(4, states)
    across = min(32, states // near)
    return gl.BlockedLayout([near, 1], [across, 32 // across], [1, 1], [0, 1])


@gluon.jit
def reciprocal(x):
    return gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def sigmoid(x):
    return reciprocal(1.0 + gl.exp2(x * -LOG2E))


@gluon.jit
def softplus(x):
    """As in `triton_primitives`, with the hardware's reciprocal."""
    e = gl.exp2(gl.abs(x) * -LOG2E)
    s = e * reciprocal(2.0 + e)
    q = s * s
    p = 0.24409403 * q + 0.21394268
    p = p * q + 0.28620625
    p = p * q + 0.39998695
    p = p * q + 0.66666681
    return gl.maximum(x, 0.0) + s * (p * q + 2.0)


@gluon.jit
def rows(tile):
    """The steps of a tile, a tuple of tiles (1, channels)."""
    if tile.shape[0] == 1:
        return (tile,)
    else:
        halves = gl.reshape(tile, [2, tile.shape[0] // 2, tile.shape[1]])
        first, second = gl.split(gl.permute(halves, (1, 2, 0)))
        return rows(first) + rows(second)


@gluon.jit
def tile_of(steps):
    """These tiles on top of one another; the inverse of `rows`, but for the layout's name."""
    if len(steps) == 1:
        return steps[0]
    else:
        half: gl.constexpr = len(steps) // 2
        halves = gl.permute(gl.join(tile_of(steps[:half]), tile_of(steps[half:])), (2, 0, 1))
        return gl.reshape(halves, [len(steps) * steps[0].shape[0], steps[0].shape[1]])


@gluon.jit
def as_row(step, like):
    """A row of channels as a tile of one step."""
    return gl.convert_layout(gl.expand_dims(step, 0), like.type.layout, assert_trivial=True)


@gluon.jit
def as_channels(row, layout: gl.constexpr):
    """A tile of one step as a row of channels."""
    return gl.convert_layout(gl.reshape(row, [row.shape[1]]), layout, assert_trivial=True)


@gluon.jit
def read_tile(base, stride, t, d, inside, MASKED: gl.constexpr):
    """A tile as it is stored, zero outside; offsets within a tile fit in 32 bits."""
    at = t[:, None] * stride + d[None, :]
    if MASKED:
        return gl.load(base + at, mask=inside, other=0.0)
    else:
        return gl.load(base + at)


@gluon.jit
def load_tile(base, stride, t, d, inside, MASKED: gl.constexpr):
    """A tile in float32, zero outside."""
    return read_tile(base, stride, t, d, inside, MASKED).to(gl.float32)


@gluon.jit
def store_tile(base, stride, t, d, inside, x, MASKED: gl.constexpr):
    at = t[:, None] * stride + d[None, :]
    if MASKED:
        gl.store(base + at, x.to(base.dtype.element_ty), mask=inside)
    else:
        gl.store(base + at, x.to(base.dtype.element_ty))


@gluon.jit
def load_rows(target, group, COUNT: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr):
    """The group-th COUNT rows of channels (rows, D) in shared memory, a tuple.

    Read and written at once, because a barrier stands between two accesses to one allocation.
    """
    D: gl.constexpr = target.shape[1]
    several = target._reinterpret(gl.float32, [target.shape[0] // COUNT, COUNT, D], flat(2))
    found = rows(several.index(group).load(tile_layout(COUNT, WIDE)))
    channels = ()
    for i in gl.static_range(COUNT):
        channels = channels + (as_channels(found[i], row_layout(T, WIDE)),)  # noqa: RUF005
    return channels


@gluon.jit
def store_rows(target, group, channels, WIDE: gl.constexpr):
    COUNT: gl.constexpr = len(channels)
    D: gl.constexpr = target.shape[1]
    several = target._reinterpret(gl.float32, [target.shape[0] // COUNT, COUNT, D], flat(2))
    single = ()
    for i in gl.static_range(COUNT):
        single = single + (gl.expand_dims(channels[i], 0),)  # noqa: RUF005
    tile = gl.convert_layout(tile_of(single), tile_layout(COUNT, WIDE), assert_trivial=True)
    several.index(group).store(tile)


@gluon.jit
def read_states(base, stride, left, N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr):
    """T steps of B or C as a tile (NP, T), as they are stored, zero outside."""
    layout: gl.constexpr = state_layout(NP, T)
    n = gl.arange(0, NP, layout=gl.SliceLayout(1, layout))
    t = gl.arange(0, T, layout=gl.SliceLayout(0, layout))
    inside = (n < N)[:, None] & (t < left)[None, :]
    return gl.load(base + (t[None, :] * stride + n[:, None]), mask=inside, other=0.0)


@gluon.jit
def fetch_ahead(base, stride, left, ROWS: gl.constexpr, D: gl.constexpr):
    """Bring rows of D numbers that the next tile will read into the L2 cache; `left` exist."""
    NEAR: gl.constexpr = 256 // base.dtype.element_ty.primitive_bitwidth  # in 32 bytes, a sector
    SECTORS: gl.constexpr = D // NEAR
    lane = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    for done in gl.static_range(0, ROWS, 32 // SECTORS):
        row = gl.minimum(done + lane // SECTORS, gl.minimum(ROWS, left) - 1)
        gl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l",
            [base + (row * stride + lane % SECTORS * NEAR)], dtype=gl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@gluon.jit
def penalties(base, stride, first, left, T: gl.constexpr, WIDE: gl.constexpr):
    """What to add to the exponents of T steps: RESET where a segment starts, else 0.

    base points at the segment of the tile's first step; `first` is that step's number in the scan.
    """
    t = gl.arange(0, T, layout=step_layout(T, WIDE))
    inside = t < left
    here = gl.load(base + t * stride, mask=inside, other=0)
    before = gl.load(base + (t - 1) * stride, mask=inside & (first + t > 0), other=0)
    return gl.where(inside & (first + t > 0) & (here != before), RESET, 0.0)
