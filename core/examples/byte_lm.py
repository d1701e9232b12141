"""A byte-level language model in one minute on a CPU: train on a text, then let it write.

    python core/examples/byte_lm.py --text FILE --steps 500 --prompt "def "

Without --text it learns the sources of this package. Every byte is a token, so there is no
tokenizer. The text is cut into rows that are read in order, chunk after chunk, with the state
carried along and cut from its history (truncated back-propagation through time): the model
never starts from nothing, although it learns from 128 bytes at a time.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import mambacore
from mambacore import LanguageModel, ModelConfig, generate, parameter_groups, save_pretrained, state

CONFIG = ModelConfig(vocab_size=256, d_model=64, n_layer=2)


def train(
    text: bytes, config: ModelConfig, *, steps: int, rows: int = 16, chunk: int = 128, seed: int = 0
) -> tuple[LanguageModel, list[float]]:
    """A model and its loss at every step, in bits a byte."""
    torch.manual_seed(seed)
    model = LanguageModel(config)
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.1), lr=3e-3, betas=(0.9, 0.95))
    length = len(text) // rows
    if length <= chunk:
        raise SystemExit(
            f"the text has {len(text)} bytes; at least {rows * (chunk + 1)} are needed"
        )
    tokens = torch.frombuffer(bytearray(text[: rows * length]), dtype=torch.uint8)
    tokens = tokens.view(rows, length).long()
    carried, losses, position = None, [], 0
    for _ in range(steps):
        if position + chunk >= length:
            carried, position = None, 0
        part = tokens[:, position : position + chunk + 1]
        logits, carried = model(part[:, :-1], carried)
        loss = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        carried, position = state.detach(carried), position + chunk
        losses.append(loss.item() / math.log(2))
    return model, losses


def write(model: LanguageModel, prompt: bytes, count: int, seed: int = 0) -> bytes:
    """`count` bytes that the model continues the prompt with."""
    tokens = torch.tensor([list(prompt)])
    return bytes(
        generate(model.eval(), tokens, count, temperature=0.8, top_p=0.95, seed=seed)
        .tokens[0]
        .tolist()
    )


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Train, report, write; returns the first and the last loss."""
    parser = argparse.ArgumentParser(description="Train a byte-level Mamba and let it write.")
    parser.add_argument("--text", type=Path, help="what to learn (this package's sources)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompt", default="def ", help="what the model continues")
    parser.add_argument("--bytes", type=int, default=300, help="how much it writes")
    parser.add_argument("--save", type=Path, help="folder for the trained model")
    options = parser.parse_args(arguments)
    if options.text:
        text = options.text.read_bytes()
    else:
        sources = sorted(Path(mambacore.__file__).parent.rglob("*.py"))
        text = b"".join(path.read_bytes() for path in sources)
    model, losses = train(text, CONFIG, steps=options.steps)
    print(f"{losses[0]:.2f} -> {losses[-1]:.2f} bits a byte", file=sys.stderr)
    if options.save:
        save_pretrained(model, options.save)
    written = write(model, options.prompt.encode(), options.bytes)
    print(options.prompt + written.decode(errors="replace"))
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
