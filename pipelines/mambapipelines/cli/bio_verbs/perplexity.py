"""``mambabio perplexity``: bits a base of a language model against context length."""

from __future__ import annotations

import sys
from pathlib import Path

from ..arguments import Parser, add_inference, add_model, device_of, positive, precision_of


def lengths(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, for argparse."""
    return tuple(positive(part.strip()) for part in text.split(",") if part.strip())


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Score the same bases, the last of every window, with contexts of several lengths. Windows "
        "hold no N; IUPAC codes are not scored.",
        "Beside it stands an interpolated Markov model, fitted to the sheet's train and val rows.",
    )
    add_model(parser)
    parser.add_argument(
        "--samples", required=True, metavar="SHEET", help="sample sheet or folder of sequences"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="test",
        help="which records (default: test)",
    )
    parser.add_argument(
        "--contexts",
        type=lengths,
        metavar="N,N,...",
        help="context lengths in bases (default: 1024,2048,...,131072)",
    )
    parser.add_argument(
        "--scored", type=positive, default=1024, help="bases at a window's end (default: 1024)"
    )
    parser.add_argument(
        "--windows", type=positive, default=512, help="windows at most (default: 512)"
    )
    parser.add_argument(
        "--markov-order",
        type=int,
        default=12,
        metavar="K",
        help="bases of context of the Markov model, -1 for none (default: 12)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add_inference(parser)
    return parser


def main(argv: list[str], prog: str) -> int:
    """Score; returns the exit code."""
    arguments = _parser(prog).parse_args(argv)
    from mambabio.classifier_files import model_folder
    from mambabio.markov import MarkovModel
    from mambabio.perplexity import CONTEXTS, perplexity
    from mambacore.checkpoint import from_pretrained

    from ...language.stores import store_for

    device = device_of(arguments)
    model = from_pretrained(model_folder(Path(arguments.model)), device=device)
    store = store_for(Path(arguments.samples), Path(arguments.model), log=_log)
    markov = None
    if arguments.markov_order >= 0:
        if store.select("train") and store.select("val"):
            markov = MarkovModel.of_store(store, order=arguments.markov_order, log=_log)
        else:
            _log("no Markov model: the sheet has no training or no validation records")
    result = perplexity(
        model,
        store,
        split=arguments.split,
        contexts=arguments.contexts or CONTEXTS,
        scored=arguments.scored,
        most=arguments.windows,
        markov=markov,
        precision=precision_of(arguments, device),
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        progress=_progress if sys.stderr.isatty() else None,
    )
    print(result.to_json() if arguments.json else result.to_text())
    return 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done} of {total} context lengths", end=end, file=sys.stderr, flush=True)
