"""Recipes: one command each, that trains, measures, and leaves a table, a figure and its records.

``python -m mambapipelines recipe`` lists them. A recipe is a module with a frozen `Config`, read
from ``configs/recipes/NAME.yaml``, and ``run(config, context) -> Result``.
"""

from __future__ import annotations

from ..cli.program import Verb

_HERE = "mambapipelines.recipes"

RECIPES: tuple[Verb, ...] = (
    Verb("induction", f"{_HERE}.induction", "induction heads: trained at 256, tested to 2^20"),
    Verb("copying", f"{_HERE}.copying", "selective copying of 16 tokens out of 4,096"),
    Verb("efficiency", f"{_HERE}.efficiency", "generation, scan and memory against attention"),
    Verb("encode-mammals", f"{_HERE}.species", "five and sixteen mammals, ENCODE (--data DIR)"),
    Verb("encode-ablation", f"{_HERE}.species", "what helps five mammals, ENCODE (--data DIR)"),
    Verb("species-length", f"{_HERE}.species", "accuracy against context length (--data DIR)"),
    Verb("mtdna", f"{_HERE}.species", "classes of vertebrates from mitochondria (--data DIR)"),
    Verb("great-apes", f"{_HERE}.species", "great apes from nuclear DNA (--data DIR)"),
    Verb("perplexity", f"{_HERE}.language", "language models of DNA by context (--data DIR)"),
)
"""Name, module and one line of every recipe."""


def find(name: str) -> Verb:
    """The recipe of that name.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    from ..cli.program import Program

    return Program("recipe", "", RECIPES).find(name)
