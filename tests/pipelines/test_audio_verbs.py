"""``mambaaudio`` from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambapipelines.cli import audio


def test_check_prints_a_row_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    soundfile.write(tmp_path / "a.wav", noise, 8000, subtype="PCM_16")
    soundfile.write(tmp_path / "b.wav", noise * 30, 8000, subtype="PCM_16")
    assert audio.main(["check", str(tmp_path)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split("\t")[0] == "path"
    assert first.endswith("\t")
    assert "clipped" in second
    soundfile.write(tmp_path / "b.wav", np.stack([noise] * 2, 1), 8000, subtype="PCM_16")
    assert audio.main(["check", str(tmp_path), "--channel", "each"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [Path(row.split("\t")[0]).name for row in rows] == ["a.wav", "b.wav#left", "b.wav#right"]


def test_check_says_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    assert audio.main(["check", str(tmp_path)]) == 1
    assert "a.wav" in capsys.readouterr().err
    assert audio.main(["check", str(tmp_path / "gone")]) == 1
    assert audio.main(["check"]) == 2
