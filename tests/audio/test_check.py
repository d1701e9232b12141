"""Each fault, planted in a recording, is found; a sound one passes without a note."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambaaudio.check import FileCheck, check_file, check_folder, find
from mambacore.errors import DataError

RATE = 8000


def _write(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    whole = np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(path, whole, rate, subtype=subtype)
    return path


@pytest.fixture
def wave() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 4 * RATE).clip(-0.9, 0.9)


def test_a_sound_recording_has_no_notes(tmp_path: Path, wave: np.ndarray) -> None:
    check = check_file(_write(tmp_path / "a.wav", wave))
    assert check.notes == ""
    assert (check.rate, check.seconds, check.clipped) == (RATE, 4.0, 0)
    assert check.bits == 16
    assert abs(check.rms_db - 20 * np.log10(wave.std())) < 0.05


def test_clipping(tmp_path: Path, wave: np.ndarray) -> None:
    check = check_file(_write(tmp_path / "a.wav", wave * 20))
    assert check.clipped > 100
    assert "clipped" in check.notes


def test_offset(tmp_path: Path, wave: np.ndarray) -> None:
    assert "DC offset +0.050" in check_file(_write(tmp_path / "a.wav", wave + 0.05)).notes


@pytest.mark.parametrize("at", [0, 60_000, 65_530])
def test_silence_is_found_across_blocks(tmp_path: Path, at: int) -> None:
    wave = np.full(100_000, 0.25)
    wave[::2] = -0.25
    wave[at : at + 12_000] = 0
    check = check_file(_write(tmp_path / "a.wav", wave))
    assert check.longest_silence == pytest.approx(12_000 / RATE)
    assert check.silent_share == pytest.approx(0.12)
    silent = check_file(_write(tmp_path / "b.wav", np.zeros(100_000)))
    assert "digital silence throughout" in silent.notes


def test_eight_bits_in_disguise(tmp_path: Path, wave: np.ndarray) -> None:
    coarse = np.round(wave * 128) / 128
    check = check_file(_write(tmp_path / "a.wav", coarse))
    assert check.bits <= 8
    assert "bits of resolution in PCM_16" in check.notes
    sixteen = check_file(_write(tmp_path / "b.wav", wave, subtype="PCM_24"))
    assert sixteen.bits == 16


def test_mixed_rates_and_duplicates(tmp_path: Path, wave: np.ndarray) -> None:
    _write(tmp_path / "a.wav", wave)
    _write(tmp_path / "b.flac", wave)
    _write(tmp_path / "c.wav", -wave, rate=16000)
    first, second, third = check_folder(find(tmp_path))
    assert first.notes == ""
    assert second.notes == f"same samples as {tmp_path / 'a.wav'}"
    assert "16000 Hz where most are 8000 Hz" in third.notes


def test_each_channel(tmp_path: Path, wave: np.ndarray) -> None:
    _write(tmp_path / "a.wav", np.stack([wave, wave + 0.05], 1))
    _write(tmp_path / "b.wav", wave)
    left, right, mono = check_folder(find(tmp_path), each=True)
    names = [str(tmp_path / name) for name in ("a.wav#left", "a.wav#right", "b.wav")]
    assert [left.path, right.path, mono.path] == names
    assert left.dc == pytest.approx(mono.dc)
    assert "DC" not in left.notes
    assert "DC offset +0.050" in right.notes
    assert mono.notes == f"same samples as {names[0]}"


def test_rows_fit_the_header(tmp_path: Path, wave: np.ndarray) -> None:
    row = check_file(_write(tmp_path / "a.wav", wave)).row()
    assert len(row.split("\t")) == len(FileCheck.header().split("\t"))


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sound files"):
        find(tmp_path)
    with pytest.raises(DataError, match="no such"):
        find(tmp_path / "gone")


def test_known_eight_bit_speaker(shared_data: Path, tmp_path: Path) -> None:
    """`nicolas` of the Free Spoken Digit Dataset is 8-bit PCM, `jackson` is not."""
    import tarfile

    with tarfile.open(shared_data / "audio" / "fsdd_wav.tar.gz") as archive:
        wanted = ("7_nicolas_10.wav", "7_jackson_10.wav")
        members = [m for m in archive.getmembers() if m.name.endswith(wanted)]
        archive.extractall(tmp_path, members=members, filter="data")
    notes = {Path(c.path).name: c.notes for c in check_folder(find(tmp_path))}
    assert "bits of resolution" in notes["7_nicolas_10.wav"]
    assert "bits of resolution" not in notes["7_jackson_10.wav"]
