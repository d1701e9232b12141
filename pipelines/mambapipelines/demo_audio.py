"""`python -m mambapipelines demo-audio`: from synthesised notes to a model that plays them.

No recording may be shipped, so the demo makes its own: plucked strings and held tones at five
pitches. It calls the same command line that a user would, prints each command before it runs it,
and ends by saying how to do the same with real recordings.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

REAL_RECORDINGS = """
The same with real recordings:
  1. A folder of WAV, FLAC, OGG or MP3 files of any rate, or a sheet (TSV) with the columns path
     and perhaps label, speaker, split (train, val, test). Look at them first:
       mambaaudio check recordings > check.tsv
  2. mambaaudio fit --data.samples recordings --run runs/x
     (on a GPU: --model.preset base, or a configuration such as piano.yaml)
  3. mambaaudio generate --model runs/x --seconds 10 --prompt start.flac -o out.wav --plot
"""
_LABELS = "A3,C4,D4,E4,G4"


def _commands(out: Path) -> list[list[str]]:
    run = str(out / "run")
    fit = ["fit", "--data.samples", str(out / "notes" / "sheet.tsv"), "--run", run]
    fit += ["--model.preset", "tiny", "--data.window", "4096", "--data.tokens", "2048"]
    fit += ["--trainer.max_time", "100s", "--trainer.val_check_interval", "200"]
    fit += ["--trainer.threads", "1", "--optimizer.lr", "0.008"]
    generate = ["generate", "--model", run, "--seconds", "1", "-n", "5", "--label", _LABELS]
    generate += [
        "--speaker",
        "tone",
        "--temperature",
        "0.8",
        "-o",
        str(out / "note_{index}_{label}.wav"),
        "--plot",
    ]
    return [fit, generate]


def main(argv: list[str] | None = None) -> int:
    """Run the demo into --out; returns the exit code of the first step that fails, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m mambapipelines demo-audio", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("demo-audio"), help="folder to fill")
    out = parser.parse_args(argv).out
    if out.exists() and any(out.iterdir()):
        print(
            f"demo-audio: {out} is not empty; remove it or name another folder: --out",
            file=sys.stderr,
        )
        return 2

    from mambaaudio.synth import write_notes
    from mambapipelines.cli import audio

    start = time.perf_counter()
    print(f"\nsynthesising notes into {out / 'notes'}", file=sys.stderr, flush=True)
    write_notes(out / "notes", rate=4000, seconds=0.4, takes=14)
    for command in _commands(out):
        print(f"\n$ mambaaudio {shlex.join(command)}", file=sys.stderr, flush=True)
        code = audio.main(command)
        if code:
            print(f"demo-audio: mambaaudio {command[0]} ended with code {code}", file=sys.stderr)
            return code
    seconds = time.perf_counter() - start
    print(f"\nDone in {seconds:.0f} s. Listen to {out}/note_*.wav .", file=sys.stderr)
    print(REAL_RECORDINGS, file=sys.stderr)
    return 0
