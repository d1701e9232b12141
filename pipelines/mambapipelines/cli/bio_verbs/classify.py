"""``mambabio classify``: one line a record."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ...files import output
from ..arguments import (
    Parser,
    add_inference,
    add_model,
    check_output,
    device_of,
    positive,
    precision_of,
    probability,
)

if TYPE_CHECKING:
    from mambabio.classify import Prediction


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Label every record of sequence files. Writes TSV: record, length, label, probability.",
        "A record's probabilities are the mean of the log-probabilities of its windows of the "
        "trained length, unless --whole is given.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="FASTA, FASTQ, GenBank, EMBL, ..., plain or gzip; - is standard input",
    )
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write there (default: -, stdout)")
    parser.add_argument("--all", action="store_true", help="one column a class, its probability")
    parser.add_argument(
        "--min-probability",
        type=probability,
        default=0.0,
        metavar="P",
        help="below it the label is `unclassified`",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="carry the state through the whole record instead of averaging windows",
    )
    parser.add_argument(
        "--window", type=positive, metavar="N", help="bases in a window (default: as trained)"
    )
    parser.add_argument(
        "--both-strands",
        action="store_true",
        default=None,
        help="average both strands of every window (default: as the model was made)",
    )
    parser.add_argument("--format", metavar="NAME", help="of the inputs (default: by content)")
    add_inference(parser)
    return parser


def main(argv: list[str], prog: str) -> int:
    """Classify; returns the exit code."""
    arguments = _parser(prog).parse_args(argv)
    check_output(arguments.output)
    from mambabio.classifier import SpeciesClassifier

    device = device_of(arguments)
    model = SpeciesClassifier.from_pretrained(arguments.model, device=device)
    settings = {
        "whole": arguments.whole,
        "both_strands": arguments.both_strands,
        "window": arguments.window,
        "batch_size": arguments.batch_size,
        "precision": precision_of(arguments, device),
        "min_probability": arguments.min_probability,
        "format": arguments.format,
        "notice": lambda text: print(f"{prog}: {text}", file=sys.stderr),
    }
    header = ["record", "length", "label", "probability"]
    if arguments.all:
        header += model.labels
    with output(arguments.output) as file:
        for path in arguments.inputs:
            for prediction in model.classify(path, **settings):
                # Only now, so that a bad file gives no output at all.
                if header:
                    print(*header, sep="\t", file=file)
                    header = []
                print(*_cells(prediction, arguments.all), sep="\t", file=file)
    return 0


def _cells(prediction: Prediction, every_class: bool) -> list[str]:
    cells = [prediction.record, str(prediction.length), prediction.label]
    cells.append(f"{prediction.probability:.4f}")
    if every_class:
        cells += [f"{p:.4f}" for p in prediction.probabilities]
    return cells
