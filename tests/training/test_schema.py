"""Read settings from YAML: every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.errors import ConfigError
from hnloader.training import Config, read_config, schema
from tests.support.trainings import raises


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepps: 5", ["'stepps'", "Did you mean 'steps'?"]),
        ("data:\n  random_flipp: true", ["'data.random_flipp'", "'random_flip'"]),
        ("steps: many", ["'steps'", "a whole number", "'many'"]),
        ("steps: 0", ["'steps'", "at least 1", "got 0"]),
        ("steps: true", ["'steps'", "a whole number", "True"]),
        ("method: hypernetwrok", ["'hypernetwork' or 'embedding'", "Did you mean 'hypernetwork'?"]),
        ("data:\n  random_flip: 1", ["'data.random_flip'", "true or false", "got 1"]),
        ("data:\n  templates: a", ["'data.templates'", "a list", "'a'"]),
        ("data:\n  templates: [1]", ["'data.templates[0]'", "text", "got 1"]),
        ("max_grad_norm: .nan", ["'max_grad_norm'", "at least 0", "nan"]),
        ("ema_decay: 1", ["'ema_decay'", "at most", "got 1"]),
        ("previews: 5", ["'previews'", "keys with values", "got 5"]),
        ("- a", ["keys with values", "['a']"]),
        ("a: [", ["YAML"]),
    ],
)
def test_errors_name_the_file_and_the_setting(text: str, words: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_numbers_in_exponential_notation(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", "max_grad_norm: 1e-1\nlearning_rate: 5e-5\nsnr_gamma: 5")
    config = read_config(path)
    assert (config.max_grad_norm, config.snr_gamma, float(config.learning_rate_text)) == (0.1, 5.0, 5e-5)


def test_plain_values_round_trip() -> None:
    config = read_config(None, {"data.templates": ["a", "b"], "hypernetwork.layer_structure": [1, 1.5, 1]})
    assert schema.read(Config, schema.plain(config)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 2001-99-99", "month must be in"),
        ("steps: !!float x", "could not convert"),
        ("steps: !!timestamp x", "YAML"),
        ("[" * 3000, "nests too deeply"),
        ("steps: 1" + "0" * 200, "bits"),
        ("snr_gamma: 1" + "0" * 400, "snr_gamma"),
        ("steps: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("steps: &a [*a]", "'steps'"),
    ],
)
def test_all_yaml_errors_are_config_errors(text: str, words: str, tmp_path: Path) -> None:
    with raises(ConfigError, words):
        read_config(written(tmp_path / "config.yaml", text))


def test_nested_aliases_give_a_short_message(tmp_path: Path) -> None:
    aliased = "x"
    for name in "abcdefghijk":
        aliased = f"[&{name} [{aliased}], {', '.join([f'*{name}'] * 9)}]"
    with pytest.raises(ConfigError, match="'model'") as caught:
        read_config(written(tmp_path / "config.yaml", f"model: {aliased}"))
    assert len(str(caught.value)) < 400


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with raises(ConfigError, "1,048,576", "2,000,002"):
        read_config(written(tmp_path / "config.yaml", "# " + "x" * 2_000_000))
