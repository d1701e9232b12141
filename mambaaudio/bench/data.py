"""The two real data sets of the benchmarks, as corpora: nothing in the package knows them.

digits: the Free Spoken Digit Dataset's archive (DIGIT_SPEAKER_TAKE.wav, 8 kHz); takes 0 to 4 test,
5 to 9 validation, the rest trains. piano: a folder of FLAC (MAPS, 16 kHz), split by piece.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

from mambaaudio.corpus import Corpus, build_corpus
from mambaaudio.rows import Layout
from mambaaudio.sheet import load_samples

NAMES = ("digits", "piano")
_PIANO_TEST = ("scn15_12", "ty_maerz", "chpn-p19")
_PIANO_VALIDATION = ("mz_311_1", "bor_ps6")


def write_sheet(name: str, audio: Path, work: Path) -> Path:
    """A sample sheet for a data set below `audio`; digits are unpacked into `work` first."""
    work.mkdir(parents=True, exist_ok=True)
    sheet = work / f"{name}.tsv"
    if sheet.is_file():
        return sheet
    rows = _digits(audio, work) if name == "digits" else _piano(audio)
    if not rows:
        raise SystemExit(f"no {name} found below {audio}")
    lines = ["path\tlabel\tspeaker\tsplit", *("\t".join(row) for row in sorted(rows))]
    beside = sheet.with_suffix(".tmp")
    beside.write_text("\n".join(lines) + "\n")
    beside.replace(sheet)
    return sheet


def _digits(audio: Path, work: Path) -> list[tuple[str, str, str, str]]:
    rows = []
    with tarfile.open(audio / "fsdd_wav.tar.gz") as archive:
        for member in archive:
            if not member.name.endswith(".wav"):
                continue
            member.name = f"digits/{Path(member.name).name}"
            archive.extract(member, work, filter="data")
            digit, speaker, take = Path(member.name).stem.split("_")
            split = "test" if int(take) < 5 else "val" if int(take) < 10 else "train"
            rows.append((member.name, digit, speaker, split))
    return rows


def _piano(audio: Path) -> list[tuple[str, str, str, str]]:
    rows = []
    for path in (audio / "piano").glob("*.flac"):
        piece = path.stem.removeprefix("MAPS_MUS-").removesuffix("_ENSTDkCl")
        split = "test" if piece in _PIANO_TEST else "val" if piece in _PIANO_VALIDATION else "train"
        rows.append((str(path.resolve()), "", "", split))
    return rows


def corpus_of(name: str, audio: Path, work: Path) -> Corpus:
    """The corpus at the files' own rate and gain; its cache is in `work`, made once."""
    sheet = load_samples(write_sheet(name, audio, work))
    return build_corpus(sheet, work / "cache", validation=0, log=_log)


def layout_of(name: str, corpus: Corpus) -> Layout:
    """Digits are clips with a tail and an end event, piano is cut into stretches."""
    return Layout.choose(corpus, 1 << 17, clips=name == "digits")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
