"""Training a small language model on a synthetic task, and scoring it at any length."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mambacore import LanguageModel, ModelConfig
from mambacore.tasks import Task

from ..schedule import learning_rate_factor
from .captured import CapturedStep, adamw, set_learning_rate
from .options import NetworkOptions, TaskTraining
from .quiet import penalty, watched

Say = Callable[[str], None]
_BLOCK_TOKENS = 1 << 22
"""Tokens of training data made at once: a launch for many steps."""
_EVALUATION_TOKENS = 1 << 20
"""Tokens that pass through the model at once when it is scored."""


@dataclass(frozen=True)
class Trained:
    """A trained model and how it came about.

    losses: (step, mean loss since the row before). accuracies: (step, validation accuracy).
    seconds: of the training alone. captured: whether the steps were replayed as a CUDA graph.
    """

    model: LanguageModel
    steps: int
    seconds: float
    losses: tuple[tuple[int, float], ...]
    accuracies: tuple[tuple[int, float], ...]
    captured: bool


def build_network(task: Task, mixer: str, options: NetworkOptions) -> LanguageModel:
    """A language model of one mixer for the task's vocabulary."""
    own = options.mixer_options.get(mixer)
    return LanguageModel(
        ModelConfig(
            vocab_size=task.vocab_size,
            d_model=options.d_model,
            n_layer=options.n_layer,
            mixer=mixer,
            mixer_options={mixer: own} if own else {},
        )
    )


def answer_logits(model: LanguageModel, tokens: Tensor, answers: int) -> Tensor:
    """(rows, answers, vocabulary) logits of the last positions; the others are never scored."""
    hidden, _ = model.hidden(tokens)
    return model.logits(hidden[:, -answers:])


def train_on(
    task: Task,
    model: LanguageModel,
    options: TaskTraining,
    *,
    seed: int,
    say: Say,
    capture: bool | None = None,
) -> Trained:
    """Minimise the cross entropy of the answers on fresh questions.

    Args:
        task: where questions come from; they are made on the model's device.
        model: trained in place.
        options: how.
        seed: of the questions.
        say: called with a line at each validation.
        capture: see `CapturedStep`.
    """
    device = next(model.parameters()).device
    optimizer = adamw(
        model,
        lr=options.lr,
        weight_decay=options.weight_decay,
        betas=(0.9, options.beta2),
        eps=options.eps,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    # A tensor, because a recorded step reads it anew.
    quiet = torch.zeros((), device=device)

    def update(tokens: Tensor, answers: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with watched(model) as seen:
            logits = answer_logits(model, tokens, answers.shape[1])
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), answers.flatten())
        pressed = loss + quiet * penalty(seen) if options.quiet else loss
        pressed.backward()
        if options.clip:
            torch.nn.utils.clip_grad_norm_(parameters, options.clip)
        optimizer.step()
        return loss.detach()

    tasks = [*(at_length(task, length) for length in options.stages), task]
    stage = 0
    total = torch.zeros((), device=device)
    losses: list[tuple[int, float]] = []
    accuracies: list[tuple[int, float]] = []
    good, done, since = 0, 0, 0
    step = CapturedStep(update, capture=capture)
    questions = _Questions(tasks[0], options.batch, seed, device)
    model.train()
    start = time.perf_counter()
    while done < options.steps:
        fraction = done / options.steps
        if options.seconds is not None:
            fraction = max(fraction, (time.perf_counter() - start) / options.seconds)
            if fraction >= 1:
                break
        if options.stage(fraction) != stage:
            stage = options.stage(fraction)
            # The shapes are new, so the steps are recorded anew.
            step = CapturedStep(update, capture=capture)
            questions = _Questions(tasks[stage], options.batch, seed + stage, device)
        factor = learning_rate_factor(fraction, options.warmup, options.final)
        set_learning_rate(optimizer, options.lr * max(factor, 1e-6))
        if fraction >= options.quiet_from:
            quiet.fill_(options.quiet)
        total += step(*questions.next())
        done += 1
        since += 1
        if done % options.validate_every == 0 or done == options.steps:
            losses.append((done, total.item() / since))
            total.zero_()
            since = 0
            score = accuracy_on(task, model, options.validation, seed=seed + 7919)
            accuracies.append((done, score))
            rate = done / (time.perf_counter() - start)
            say(f"  step {done:,}: loss {losses[-1][1]:.2e}, accuracy {score:.4f}, {rate:,.0f}/s")
            good = good + 1 if score >= options.enough else 0
            if options.patience and good >= options.patience:
                break
    if device.type == "cuda":
        torch.cuda.synchronize()
    if step.refused:
        say(f"  (steps were not captured: {step.refused})")
    seconds = time.perf_counter() - start
    return Trained(model, done, seconds, tuple(losses), tuple(accuracies), step.captured)


class _Questions:
    """Batches, made many at a time: a function of the seed, in order."""

    def __init__(self, task: Task, batch: int, seed: int, device: torch.device) -> None:
        self._task, self._batch, self._device = task, batch, device
        self._generator = torch.Generator(device).manual_seed(seed)
        length = task.draw(1, device=device, generator=self._generator).tokens.shape[1]
        self._ahead = max(1, min(1024, _BLOCK_TOKENS // (length * batch)))
        self._left: list[tuple[Tensor, Tensor]] = []

    def next(self) -> tuple[Tensor, Tensor]:
        """(tokens, answers) of the next step."""
        if not self._left:
            rows = self._batch * self._ahead
            block = self._task.draw(rows, generator=self._generator, device=self._device)
            parts = (part.split(self._batch) for part in block)
            self._left = list(zip(*parts, strict=True))[::-1]
        return self._left.pop()


@torch.no_grad()
def accuracy_on(
    task: Task,
    model: LanguageModel,
    questions: int,
    *,
    seed: int,
    chunk: int | None = None,
    tokens_at_once: int = _EVALUATION_TOKENS,
) -> float:
    """Share of the answers that are the model's most likely token, on fixed fresh questions.

    Args:
        task: its questions are drawn on the model's device.
        model: its mode is left as it was.
        questions: how many.
        seed: the same one gives the same questions on the same kind of device.
        chunk: positions that pass at once, the state carried between them; None passes whole
            sequences.
        tokens_at_once: bounds the rows of a batch, and with `chunk` None so the memory.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    length = task.draw(1, device=device, generator=generator).tokens.shape[1]
    rows = max(1, tokens_at_once // min(length, chunk or length))
    training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    asked = 0
    try:
        for first in range(0, questions, rows):
            batch = task.draw(min(rows, questions - first), generator=generator, device=device)
            called = answers_of(model, batch.tokens, batch.answers.shape[1], chunk or length)
            right += (called == batch.answers).sum()
            asked += batch.answers.numel()
    finally:
        model.train(training)
    return right.item() / asked


@torch.no_grad()
def answers_of(model: LanguageModel, tokens: Tensor, answers: int, chunk: int) -> Tensor:
    """(rows, answers) most likely tokens at the last positions, read in chunks."""
    state = None
    # The last piece holds all positions that are asked for.
    last = max(0, (tokens.shape[1] - answers) // chunk * chunk)
    for start in range(0, last, chunk):
        _, state = model.hidden(tokens[:, start : start + chunk], state)
    hidden, _ = model.hidden(tokens[:, last:], state)
    return model.logits(hidden[:, -answers:]).argmax(dim=-1)


def at_length(task: Task, length: int) -> Task:
    """The same task with sequences of another length."""
    return dataclasses.replace(task, length=length)  # type: ignore[type-var]
