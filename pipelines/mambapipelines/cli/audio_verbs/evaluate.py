"""``mambaaudio evaluate``: bits per sample on a split, beside floors from the same codes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..arguments import Parser, add_inference, add_model, device_of, positive, precision_of

_CONTEXTS = "8192,16384,32768,65536,131072,262144"


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Bits per sample of every recording of a split, beside symbol counts, pairs of symbols and "
        "adaptive linear prediction on the same codes; by label, speaker and file.",
        "The figures are also saved in the run folder (evaluation/), where `report` finds them.",
    )
    add_model(parser)
    parser.add_argument(
        "--samples", metavar="SHEET", help="sheet, folder or pattern (default: the run's own)"
    )
    parser.add_argument(
        "--channel",
        choices=("mix", "left", "right", "each"),
        help="of several channels: their mean, one, or each as FILE#left (default: as the run)",
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="(default: test)"
    )
    parser.add_argument(
        "--contexts",
        nargs="?",
        const=_CONTEXTS,
        type=_lengths,
        metavar="N,N,...",
        help=f"also against context length, in samples (without a value: {_CONTEXTS})",
    )
    parser.add_argument(
        "--context-blocks",
        type=positive,
        default=32,
        metavar="N",
        help="stretches of 4,096 samples that these are measured on (default: 32)",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SPEAKER",
        help="also the figure of all others; may be repeated",
    )
    parser.add_argument(
        "--untold", action="store_true", help="do not tell the model labels and speakers"
    )
    parser.add_argument("--no-floors", action="store_true", help="the model alone")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable files")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument(
        "--out", metavar="DIR", help="also save the figures there (default: the run folder's own)"
    )
    add_inference(parser)
    return parser


def _lengths(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 8192,65536")
    return values


def main(argv: list[str], prog: str) -> int:
    """Evaluate; returns the exit code."""
    arguments = _parser(prog).parse_args(argv)
    from mambaaudio.bits import Scorer
    from mambaaudio.evaluate import evaluate
    from mambaaudio.model import WaveformModel
    from mambacore.errors import UsageError

    from ...audio.corpora import corpus_for, options_of, run_of

    device = device_of(arguments)
    model = WaveformModel.from_pretrained(arguments.model, device=device)
    run = run_of(Path(arguments.model))
    samples = arguments.samples or options_of(run)[0].get("samples")
    if not samples:
        raise UsageError("--samples is missing: name a sheet or a folder of recordings.")
    corpus = corpus_for(
        model.config,
        samples,
        run,
        channel=arguments.channel,
        skip_bad=arguments.skip_bad,
        log=_log,
    )
    chunk = arguments.batch_size
    scorer = Scorer(model, precision=precision_of(arguments, device), chunk=chunk)
    evaluation = evaluate(
        scorer,
        corpus,
        split=arguments.split,
        conditions=not arguments.untold,
        floors=() if arguments.no_floors else None,
        contexts=arguments.contexts or (),
        context_blocks=arguments.context_blocks,
        without=arguments.without,
        progress=_Progress() if sys.stderr.isatty() else None,
    )
    folder = Path(arguments.out) if arguments.out else run and run / "evaluation"
    if folder:
        evaluation.save(folder)
    if arguments.json:
        print(json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(evaluation.to_text())
    return 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Progress:
    """Samples done, on a terminal."""

    def __call__(self, done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done:,} of {total:,} samples", end=end, file=sys.stderr, flush=True)
