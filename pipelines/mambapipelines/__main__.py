"""``python -m mambapipelines bio ...`` is ``mambabio ...``; ``audio`` likewise; ``demo``,
``demo-audio`` and ``recipe``.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Hand the arguments after the first to the command line that the first names."""
    domain = sys.argv[1] if len(sys.argv) > 1 else ""
    if domain == "bio":
        from .cli.bio import main as program
    elif domain == "audio":
        from .cli.audio import main as program
    elif domain == "demo":
        from .demo import main as program
    elif domain == "demo-audio":
        from .demo_audio import main as program
    elif domain == "recipe":
        from .recipes.command import main as program
    else:
        sys.stderr.write(
            "usage: python -m mambapipelines bio|audio VERB ... (or: demo, demo-audio, recipe)\n"
        )
        return 2
    return program(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
