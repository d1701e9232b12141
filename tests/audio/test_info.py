"""What files say of themselves, and what is wrong with them, in one sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambaaudio.info import FileInfo, describe, file_info
from mambaaudio.model import WaveformModel
from mambaaudio.model_config import WaveformConfig
from mambacore.errors import DataError
from mambacore.multiscale import MultiScaleConfig

RATE = 8000


@pytest.fixture
def wave() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 2 * RATE).clip(-0.9, 0.9)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("verify", [False, True])
def test_good_files(tmp_path: Path, wave: np.ndarray, suffix: str, verify: bool) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([wave, wave], 1), RATE)
    info = file_info(path, verify=verify)
    assert (info.rate, info.channels, info.frames, info.seconds) == (RATE, 2, 2 * RATE, 2.0)
    assert info.verified == ("ok" if verify else "")
    assert len(info.row().split("\t")) == len(FileInfo.header().split("\t"))


def test_a_wav_shorter_than_its_header(tmp_path: Path, wave: np.ndarray) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    file_info(path)
    with pytest.raises(DataError, match=r"a\.wav: cut short: its header says 32,000 bytes"):
        file_info(path, verify=True)
    # A stream's header says the largest size, which is no fault.
    at = whole.index(b"data")
    path.write_bytes(whole[: at + 4] + struct.pack("<I", 0xFFFFFFFF - 36) + whole[at + 8 :])
    assert file_info(path, verify=True).frames == 2 * RATE


def test_a_truncated_flac(tmp_path: Path, wave: np.ndarray) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, wave, RATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.flac: (damaged|ends) after frame"):
        file_info(path, verify=True)


def test_a_rate_of_zero_and_text(tmp_path: Path, wave: np.ndarray) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    whole = bytearray(path.read_bytes())
    at = whole.index(b"fmt ")
    whole[at + 12 : at + 16] = struct.pack("<I", 0)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="0 samples a second"):
        file_info(path)
    path.write_text("this is no sound\n")
    with pytest.raises(DataError, match="not a sound file"):
        file_info(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        file_info(path)
    with pytest.raises(DataError, match="no such"):
        file_info(tmp_path / "gone.wav")


def test_samples_that_are_no_numbers(tmp_path: Path, wave: np.ndarray) -> None:
    path = tmp_path / "a.wav"
    wave[70] = np.nan
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    file_info(path)
    with pytest.raises(DataError, match="sample 70"):
        file_info(path, verify=True)


def test_a_model_is_described_without_being_built(tmp_path: Path) -> None:
    config = WaveformConfig(
        RATE, backbone=MultiScaleConfig(d_model=8, pools=(2,), n_layer=1), labels=("a", "b")
    )
    model = WaveformModel(config)
    model.save_pretrained(tmp_path / "m")
    facts = describe(tmp_path / "m")
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["labels"] == ["a", "b"]
    with pytest.raises(DataError, match="no model"):
        describe(tmp_path)
