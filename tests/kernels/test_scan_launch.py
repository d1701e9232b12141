"""Launches recorded once and repeated with other tensors: every argument is the right one again.

The kernels here only note what they are given; that the real ones compute the same when repeated is
tested on a GPU (`test_scan_triton.py`), since the interpreter compiles nothing to repeat.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mambakernels.scan import triton as backend
from mambakernels.scan import triton_launch
from mambakernels.scan.triton_problem import Tuning, identify

SOFTPLUS, ZOH, REVERSE = True, False, False


class Version:
    """A compiled kernel: notes its launches, started directly or by the public method."""

    function = packed_metadata = None

    def __init__(self, noted: list) -> None:
        self._noted = noted

    def run(self, programs: int, y: int, z: int, stream: int, *rest: Any) -> None:
        self._noted.append((programs, rest[5:]))

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments: self._noted.append((grid[0], arguments))


@pytest.fixture(params=[True, False], ids=["direct", "public"])
def launches(request, monkeypatch: pytest.MonkeyPatch) -> tuple[list, list]:
    """(recorded, repeated): programs and arguments of each launch, tensors by their address."""
    recorded: list = []
    repeated: list = []

    def launch(self, kernel: Any, programs: int, arguments, **options) -> None:
        plain = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        recorded.append((programs, plain))
        self._launches.append((Version(repeated), programs, arguments))

    monkeypatch.setattr(triton_launch.Recording, "launch", launch)
    monkeypatch.setattr(triton_launch, "_DIRECT", request.param)
    monkeypatch.setattr(backend, "_plans", triton_launch.Plans())
    return recorded, repeated


def problem(seed: int, states: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    u, delta, z = draw(2, 50, 8), draw(2, 50, 8), draw(2, 50, 8)
    B, C = draw(2, 50, 2 * states).split(states, dim=-1)  # strided rows
    return {
        "u": u, "delta": delta, "A": draw(8, states), "B": B, "C": C, "D": draw(8), "z": z,
        "delta_bias": None, "initial_state": draw(2, 8, states), "segment_ids": None,
    }  # fmt: skip


def names_of(noted: list, tensors: dict[str, Tensor | None]) -> list:
    """The same with names for the addresses of known tensors and `memory` for other ones."""
    names = {t.data_ptr(): name for name, t in tensors.items() if t is not None and t.numel()}

    def name(a: Any) -> Any:
        return names.get(a, "memory") if isinstance(a, int) and a > 1 << 24 else a

    return [(programs, tuple(map(name, arguments))) for programs, arguments in noted]


def call(inputs: dict[str, Any], save: bool = True) -> dict[str, Tensor | None]:
    """Forward and backward; every tensor by name."""
    options = (SOFTPLUS, ZOH, REVERSE)
    tuning = Tuning(chunk=16, block=4)
    out, final, saved = backend.forward(*inputs.values(), *options, save=save, tuning=tuning)
    made = {"out": out, "final": final, "saved": saved}
    if save:
        dout, dfinal = torch.ones_like(out), torch.ones_like(final)
        found = backend.backward(
            dout, dfinal, saved, None, *inputs.values(), *options, tuning=tuning
        )
        gradients = {f"d{name}": g for name, g in zip(inputs, found, strict=False)}
        made |= {"dout": dout, "dfinal": dfinal, **gradients}
    return {**inputs, **made}


@pytest.mark.parametrize("save", [True, False])
def test_a_repeated_call_launches_the_same_with_its_own_tensors(launches, save: bool) -> None:
    recorded, repeated = launches
    first = call(problem(1), save)
    count = len(recorded)
    assert count == (7 if save else 3)
    assert not repeated
    second = call(problem(2), save)
    assert len(recorded) == count  # Triton was not asked again
    assert names_of(repeated, second) == names_of(recorded, first)
    memory = [a for _, arguments in names_of(repeated, second) for a in arguments if a == "memory"]
    assert memory  # the chunks' edges
    for programs, arguments in repeated:
        assert programs > 0
        assert all(a % 16 == 0 for a in arguments if isinstance(a, int) and a > 1 << 24)


def test_scratch_tensors_do_not_overlap(launches) -> None:
    record = triton_launch.Recording(torch.empty(0))
    sizes = (5, 64, 1, 33)
    record.launch(None, 1, [record.empty(n) for n in sizes])
    plan = record.plan([])
    assert plan is not None
    plan.run(0, [], torch.empty(0))
    ((_, addresses),) = launches[1]
    ends = [a + 4 * n for a, n in zip(addresses, sizes, strict=True)]
    assert all(end <= a for end, a in zip(ends, addresses[1:], strict=False))
    assert ends[-1] - addresses[0] <= 4 * plan.scratch


def test_another_kind_of_problem_is_asked_about_again(launches) -> None:
    recorded, repeated = launches
    base = problem(1)
    odd = torch.randn(2 * 50 * 8 + 1)[1:].view(2, 50, 8)
    kinds = [
        base, {**base, "D": None}, {**base, "B": base["B"].contiguous()}, {**base, "u": odd},
        {**base, "z": base["z"].bfloat16()}, problem(1, states=5),
        {**base, "segment_ids": torch.zeros(2, 50, dtype=torch.int32)},
        {**base, "u": base["u"][:, :49], "delta": base["delta"][:, :49]},
    ]  # fmt: skip
    kinds[-1] |= {name: kinds[-1][name][:, :49] for name in ("B", "C", "z")}
    for number, inputs in enumerate(kinds, start=1):
        call(inputs, save=False)
        assert len(recorded) == 3 * number
    assert not repeated


def test_one_tensor_in_two_places_is_not_remembered(launches) -> None:
    """Which of the two a later call means could not be told."""
    recorded, repeated = launches
    same = problem(1)
    same["z"] = same["u"]
    call(same, save=False)
    call(same, save=False)
    assert (len(recorded), len(repeated)) == (6, 0)
    second = call(problem(2), save=False)
    third = call(same, save=False)  # of the same kind, now known
    assert len(repeated) == 3
    with_u = [a for _, arguments in names_of(repeated, third) for a in arguments]
    assert with_u.count("z") + with_u.count("u") == 3  # summaries: u; outputs: u and z
    assert second["out"] is not None


def test_addresses_of_views_count(launches) -> None:
    u = torch.zeros(1, 3, 2)
    rows = (u[:, :, :1],)
    one, addresses = identify(u, torch.zeros(2, 2), rows, (None,), "x")
    other, _ = identify(u, torch.zeros(2, 2), (u[:, :, 1:],), (None,), "x")
    assert one != other  # four bytes further
    assert addresses == [u.data_ptr(), None]
