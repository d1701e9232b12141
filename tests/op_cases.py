"""Testing the small operations: each backend where it runs, results with gradients, comparison."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import assert_as_exact

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# (backend, device); without the interpreter, Triton needs a GPU
TRITON = pytest.param(("triton", DEVICE), id="triton", marks=() if INTERPRETED else pytest.mark.gpu)
PLACES = [pytest.param(("cpu", "cpu"), id="cpu"), TRITON]
# The interpreter rounds bfloat16 otherwise than the GPU does.
DTYPES = [torch.float32, torch.float16, torch.float64] + [torch.bfloat16] * (not INTERPRETED)
EXAMPLES = 6 if INTERPRETED else 40

Run = Callable[[dict[str, Tensor], str], dict[str, Tensor]]


@contextmanager
def memory_full_of_nan() -> Iterator[None]:
    """Fresh memory holds NaN, so that what a kernel forgets to write cannot pass for zero."""

    def poisoned(make):
        def made(*args, **kwargs):
            memory = make(*args, **kwargs)
            if isinstance(memory, np.ndarray):
                memory.fill(np.nan)
            elif memory.is_floating_point():
                memory.fill_(float("nan"))
            return memory

        return made

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", poisoned(Tensor.new_empty)),
        mock.patch("mambakernels.conv.cpu.aligned", poisoned(_aligned())),
        mock.patch("mambakernels.norm.cpu.aligned", poisoned(_aligned())),
    ):
        yield


def _aligned():
    from mambakernels import _rows

    return _rows.aligned


def results(run: Run, tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """Outputs of `run`, and gradients of all floating inputs by random weights of the outputs."""
    leaves = {k: t.detach() for k, t in tensors.items()}
    wanted = [k for k, t in leaves.items() if t.is_floating_point()]
    for name in wanted:
        leaves[name] = leaves[name].requires_grad_()
    outputs = run(leaves, backend)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in outputs.values()]
    with memory_full_of_nan():
        gradients = torch.autograd.grad(
            list(outputs.values()), [leaves[k] for k in wanted], weights, allow_unused=True
        )
    found = {k: t.detach() for k, t in outputs.items()}
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient is not None:
            assert gradient.dtype == leaves[name].dtype, name
            found["d" + name] = gradient
    return found


def check_parity(run: Run, tensors: dict[str, Tensor], place: tuple[str, str]) -> None:
    """The tolerance rule, for every output and gradient."""
    backend, device = place
    double = {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
    rounded = [t.dtype for t in tensors.values() if t.is_floating_point()]
    coarsest = max(rounded, key=lambda dtype: torch.finfo(dtype).eps)
    exact = results(run, double, "reference")
    base = results(run, tensors, "reference")
    with memory_full_of_nan():
        got = results(run, {k: t.to(device) for k, t in tensors.items()}, backend)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == base[name].dtype, name
        assert_as_exact(value.cpu(), exact[name], base[name], name, dtype=coarsest)


def run_interpreted(file: str) -> None:
    """Run a test file's Triton cases in a process whose Triton interprets its kernels."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "triton", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


class CompiledOnly:
    """Stands in for a Triton kernel where there is no GPU: a launch compiles it for one.

    What Triton's interpreter forgives (variables that change their type in a loop, code after a
    return) is an error of the compiler, so CI sees it.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.compiled = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._compile

    def _compile(self, *given: Any, num_warps: int = 4, **named: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        values = dict(zip(self._kernel.arg_names, given, strict=False)) | named
        constants = {p.name for p in self._kernel.params if p.is_constexpr}
        signature, constexprs = {}, {}
        for place, name in enumerate(self._kernel.arg_names):
            value = values[name]
            if name in constants or value is None:
                signature[name], constexprs[(place,)] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[name] = "*" + _TRITON_NAMES[value.dtype]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i64"
        source = ASTSource(fn=self._kernel, signature=signature, constexprs=constexprs)
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
        self.compiled += 1


_TRITON_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
