"""A short tour of an installed mambakit, run by CI on the newest supported torch.

No pytest, no checkout: `python smoke.py` with the wheel installed. It fails loudly.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import mambaaudio
import mambacore
import mambakernels


def scan_gradients() -> None:
    """The CPU kernel and the reference agree, forward and backward."""
    torch.manual_seed(0)
    inputs = {
        "u": torch.randn(2, 65, 24),
        "delta": torch.randn(2, 65, 24),
        "A": -torch.rand(24, 16) - 0.1,
        "B": torch.randn(2, 65, 16),
        "C": torch.randn(2, 65, 16),
    }
    gradients = {}
    for backend in ("reference", "cpu"):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        out = mambakernels.selective_scan(**leaves, delta_softplus=True, backend=backend)
        out.square().sum().backward()
        gradients[backend] = {name: leaf.grad for name, leaf in leaves.items()}
    for name, expected in gradients["reference"].items():
        torch.testing.assert_close(gradients["cpu"][name], expected, rtol=1e-3, atol=1e-3)


def model_learns_and_survives(folder: Path) -> None:
    """A small language model learns a cycle, is saved, loaded, and continues it."""
    torch.manual_seed(0)
    config = mambacore.ModelConfig(vocab_size=4, d_model=32, n_layer=1)
    model = mambacore.LanguageModel(config)
    optimiser = torch.optim.AdamW(mambacore.parameter_groups(model, 0.01), lr=3e-3)
    tokens = (torch.arange(65) % 4).repeat(4, 1)
    for _ in range(60):
        logits, _ = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if not float(loss) < 0.3:
        raise SystemExit(f"the model did not learn: loss {float(loss):.3f}")
    mambacore.save_pretrained(model, folder / "model")
    loaded = mambacore.from_pretrained(folder / "model")
    if not torch.equal(loaded(tokens)[0], model(tokens)[0]):
        raise SystemExit("the loaded model differs from the saved one")


def audio_codes() -> None:
    """torchaudio loads beside this torch, and mu-law comes back."""
    codes = torch.arange(256)
    mulaw = mambaaudio.code("mulaw8")
    if not torch.equal(mulaw.encode(mulaw.decode(codes)), codes):
        raise SystemExit("mu-law codes do not survive")


def programs(folder: Path) -> None:
    """The command lines: simulate, a few steps of fit, classify."""

    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "mambabio"), *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    run("simulate", "--out", str(folder / "sim"), "--bases", "60000")
    fit = ["fit", "--data.samples", str(folder / "sim" / "samples.tsv"), "--run"]
    fit += [str(folder / "run"), "--data.window", "256", "--trainer.max_steps", "5"]
    run(*fit, "--model.d_model", "16", "--model.n_layer", "1")
    fasta = sorted((folder / "sim").rglob("*.fa.gz"))[0]
    lines = run("classify", "--model", str(folder / "run"), str(fasta)).splitlines()
    if not (lines[0] == "record\tlength\tlabel\tprobability" and len(lines) > 1):
        raise SystemExit(f"classify printed {lines[:2]}")


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        scan_gradients()
        model_learns_and_survives(Path(name))
        audio_codes()
        programs(Path(name))
    print("smoke test passed")
