"""``mambabio evaluate``: how good a model is, beside chance and the k-mer baseline."""

from __future__ import annotations

import sys
from pathlib import Path

from ..arguments import (
    Parser,
    add_inference,
    add_model,
    check_folder,
    device_of,
    positive,
    precision_of,
)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Score every window of a non-overlapping tiling of a split's records.",
        "The figures are also saved in the run folder (evaluation/), where `report` finds them.",
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
        "--window", type=positive, metavar="N", help="bases in a window (default: as trained)"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="read windows beyond the trained length in one pass instead of averaging pieces",
    )
    parser.add_argument(
        "--candidates",
        choices=("model", "sheet"),
        default="model",
        help="classes that may be called: all that the model knows, or only those in the sheet",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument(
        "--out", metavar="DIR", help="also save the figures there (default: the run folder's own)"
    )
    parser.add_argument(
        "--both-strands",
        action="store_true",
        default=None,
        help="average both strands of every window (default: as the model was made)",
    )
    parser.add_argument(
        "--no-baseline",
        action="store_true",
        help="leave out the k-mer baselines and what N alone would tell",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add_inference(parser)
    return parser


def main(argv: list[str], prog: str) -> int:
    """Evaluate; returns the exit code."""
    arguments = _parser(prog).parse_args(argv)
    check_folder(arguments.out)
    from mambabio.classifier import SpeciesClassifier
    from mambabio.evaluate import evaluate
    from mambabio.prepared import is_prepared

    from ...bio.stores import check_window, run_of, saved_baselines, store_for

    device = device_of(arguments)
    model = SpeciesClassifier.from_pretrained(arguments.model, device=device)
    run = run_of(Path(arguments.model))
    samples = Path(arguments.samples)
    store = store_for(model.config, samples, run, log=_log)
    window = arguments.window or model.config.window
    if arguments.window:
        check_window(store, arguments.split, window)
    with_n = None
    # Prepared sequences have lost their N.
    had_n = model.config.n_policy != "keep" and not is_prepared(samples)
    if not arguments.no_baseline and had_n and store.select("train"):
        _log("reading the sequences with their N too, for what N alone would tell")
        with_n = store_for(model.config, samples, run, n_policy="keep", log=lambda line: None)
    baselines = None if arguments.no_baseline else saved_baselines(run, window)
    if arguments.candidates == "sheet" and baselines is not None:
        baselines = baselines if baselines.labels == store.narrowed().labels else None
    evaluation = evaluate(
        model,
        store,
        split=arguments.split,
        window=window,
        baselines=baselines,
        fit_baselines=not arguments.no_baseline,
        with_n=with_n,
        batch_size=arguments.batch_size,
        both_strands=arguments.both_strands,
        precision=precision_of(arguments, device),
        whole=arguments.whole,
        candidates=arguments.candidates,
        seed=arguments.seed,
        progress=_Progress() if sys.stderr.isatty() else None,
        log=_log,
    )
    folder = Path(arguments.out) if arguments.out else run and run / "evaluation"
    if folder:
        evaluation.save(folder)
    print(evaluation.to_json() if arguments.json else evaluation.to_text())
    return 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Progress:
    """Windows done, on a terminal."""

    def __call__(self, done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done:,} of {total:,} windows", end=end, file=sys.stderr, flush=True)
