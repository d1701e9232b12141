"""The command line of fit: files, overrides, resuming, errors in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import mambapipelines
from mambacore.errors import UsageError
from mambapipelines.cli.audio_verbs.fit import SECTIONS as AUDIO_SECTIONS
from mambapipelines.cli.bio_verbs.fit import SECTIONS
from mambapipelines.cli.fit_parser import parse_fit, to_yaml
from mambapipelines.options import seconds

CONFIGS = Path(mambapipelines.__file__).parent / "configs"


def parse(*argv: str):
    return parse_fit(argv, "mambabio fit", SECTIONS)


def test_defaults_and_overrides():
    parsed = parse("--run", "x", "--data.samples", "s.tsv", "--model.d_model=32", "--seed", "5")
    assert parsed.sections["model"].d_model == 32
    assert parsed.sections["data"].samples == "s.tsv"
    assert (parsed.run, parsed.resume, parsed.seed) == ("x", None, 5)


def test_files_in_order_then_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {window: 512, tokens: 4096}\nmodel: {n_layer: 3}\n")
    (tmp_path / "b.yaml").write_text("data: {window: 2048}\n")
    parsed = parse(
        "--config", f"{tmp_path}/a.yaml", "--config", f"{tmp_path}/b.yaml",
        "--model.layers", "[mamba, s4d, mamba]", "--run", "x",
    )  # fmt: skip
    data, model = parsed.sections["data"], parsed.sections["model"]
    assert (data.window, data.tokens, model.n_layer) == (2048, 4096, 3)
    assert model.layers == ("mamba", "s4d", "mamba")


def test_a_written_config_reads_back(tmp_path):
    parsed = parse(
        "--run", "x", "--model.mixer_options", "{mamba: {d_state: 8}}",
        "--model.layers", "[mamba, mamba]", "--trainer.max_time", "8m", "--trainer.devices", "0,1",
    )  # fmt: skip
    (tmp_path / "c.yaml").write_text(to_yaml(parsed.config()))
    again = parse("--config", str(tmp_path / "c.yaml"), "--run", "y")
    assert again.sections == parsed.sections


def test_print_config_is_a_config(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--model.d_model", "48", "--print_config")
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["model"]["d_model"] == 48
    (tmp_path / "p.yaml").write_text(text)
    assert parse("--config", str(tmp_path / "p.yaml"), "--run", "x").sections["model"].d_model == 48


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_parse(path):
    audio = "mambaaudio fit" in path.read_text()
    verb = ("mambaaudio fit", AUDIO_SECTIONS) if audio else ("mambabio fit", SECTIONS)
    parsed = parse_fit(("--config", str(path), "--run", "x"), *verb)
    if path.stem in ("default", "audio-default"):
        assert parsed.sections == parse_fit(("--run", "x"), *verb).sections


def test_shipped_configs_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (("--config", "h200-species"), ("--config=h200-species.yaml",)):
        assert parse(*argv, "--run", "x").sections["model"].d_model == 192
    (tmp_path / "h200-species").write_text("model: {d_model: 8}\n")
    assert parse("--config", "h200-species", "--run", "x").sections["model"].d_model == 8


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ((), "--run DIR"),
        (("--run", "x", "--data.window", "3"), "--data.window is 3; it must be at least 64"),
        (("--run", "x", "--data.window", "many"), "--data.window: Expected int"),
        (("--run", "x", "--data.windows", "64"), "unrecognized arguments: --data.windows"),
        (("--run", "x", "--data.n_policy", "eat"), "--data.n_policy"),
        (("--run", "x", "--trainer.max_time", "soon"), "a duration such as 90s"),
        (("--run", "x", "--config", "missing.yaml"), "missing.yaml"),
        (("--run", "x", "--optimizer.lr", "-1"), "--optimizer.lr is -1"),
        (("--run", "x", "--resume", "y"), "give only one"),
        (("--resume", "missing"), "there is no such folder"),
    ],
)
def test_errors_say_what_and_what_is_accepted(argv, text):
    with pytest.raises(UsageError) as error:
        parse(*argv)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_key_in_a_file_is_an_error(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {d_modle: 3}\n")
    with pytest.raises(UsageError, match="d_modle"):
        parse("--config", str(tmp_path / "c.yaml"), "--run", "x")
    (tmp_path / "broken.yaml").write_text("model: {d_model: [3\n")
    with pytest.raises(UsageError):
        parse("--config", str(tmp_path / "broken.yaml"), "--run", "x")


def test_resume_takes_the_runs_config_and_few_changes(tmp_path):
    parsed = parse("--run", "x", "--model.d_model", "48", "--seed", "9")
    (tmp_path / "config.yaml").write_text(to_yaml(parsed.config()))
    again = parse("--resume", str(tmp_path), "--trainer.max_steps", "99")
    assert again.seed == 9
    assert again.sections["model"].d_model == 48
    assert again.sections["trainer"].max_steps == 99
    assert again.overrides == {"trainer.max_steps": 99}
    for refused in (
        ("--model.d_model", "3"),
        ("--seed", "3"),
        ("--trainer.precision", "bf16-mixed"),
    ):
        with pytest.raises(UsageError, match="cannot change when a run is resumed"):
            parse("--resume", str(tmp_path), *refused)


@given(st.integers(1, 59), st.sampled_from("smhd"))
def test_durations(number, unit):
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert seconds(f"{number}{unit}") == number * factor
    assert seconds(f"00:{number:02d}:00") == number * 60
    for wrong in ("0s", "-3m", "x", "1:2"):
        with pytest.raises(UsageError):
            seconds(wrong)


def test_dna_has_options_of_its_own_that_give_way() -> None:
    from mambapipelines.bio.options import ModelOptions

    assert ModelOptions().options_of_mixers == {"mamba": {"d_conv": 8, "d_state": 8}}
    assert ModelOptions(mixer="s4d").options_of_mixers == {}
    chosen = ModelOptions(mixer_options={"mamba": {"d_conv": 4}}).options_of_mixers
    assert chosen == {"mamba": {"d_conv": 4, "d_state": 8}}
