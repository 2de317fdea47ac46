"""The configuration: every mistake is named, and what is written is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnloader.errors import ConfigError
from hnloader.training import Config, read_config, schema
from hnloader.training.config import template
from hnloader.training.rates import parse_rate


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", ["style", "subject"])
def test_the_template_is_a_configuration_with_every_setting_explained(preset: str, tmp_path: Path) -> None:
    text = template(preset)
    assert read_config(written(tmp_path / "config.yaml", text)) == read_config(preset=preset)
    keys = [line for line in text.splitlines() if ":" in line and not line.lstrip().startswith("#")]
    assert len(keys) > 50
    for number, line in enumerate(text.splitlines()):
        if line in keys:
            assert text.splitlines()[number - 1].lstrip().startswith("#"), line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepps: 5", ["no setting 'stepps'", "did you mean 'steps'"]),
        ("data:\n  flipp: true", ["'data.flipp'", "'flip'"]),
        ("steps: many", ["steps is 'many'", "a whole number"]),
        ("steps: 0", ["steps is 0", "at least 1"]),
        ("steps: true", ["steps is True", "a whole number"]),
        ("method: hypernetwrok", ["'hypernetwork' or 'embedding'", "did you mean 'hypernetwork'"]),
        ("data:\n  flip: 1", ["data.flip is 1", "true or false"]),
        ("data:\n  templates: a", ["data.templates is 'a'", "a list"]),
        ("data:\n  templates: [1]", ["data.templates[0] is 1", "text"]),
        ("clip: .nan", ["clip is nan", "at least 0"]),
        ("ema: 1", ["ema is 1", "at most"]),
        ("previews: 5", ["previews is 5", "keys with values"]),
        ("- a", ["keys with values"]),
        ("a: [", ["no YAML"]),
    ],
)
def test_mistakes_are_named_with_the_file(text: str, words: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", "clip: 1e-1\nlearning_rate: 5e-5\nmin_snr: 5")
    config = read_config(path)
    assert (config.clip, config.min_snr, float(config.rate_text)) == (0.1, 5.0, 5e-5)


def test_later_words_win_and_nested_ones_leave_their_neighbours(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", "steps: 10\ndata:\n  repeats: 3")
    config = read_config(path, {"steps": 20, "data.resolution": 256}, preset="subject")
    assert (config.steps, config.data.repeats, config.data.resolution, config.data.flip) == (20, 3, 256, False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "model is missing"),
        ({"model": "a"}, "images is missing"),
        ({"model": "a", "images": "b"}, "output is missing"),
        ({"model": "a", "images": "b", "output": "c.ckpt"}, r".safetensors"),
        ({"hypernetwork.layer_structure": [1, 2]}, "begins and ends with 1"),
        ({"hypernetwork.activation": "relux"}, "relu"),
        ({"learning_rate": "fast"}, "a number, or pieces"),
        ({"learning_rate": "20"}, "above 0 and below 10"),
        ({"learning_rate": "-1e-3"}, "above 0 and below 10"),
        ({"learning_rate": "1e-3:50, 1e-4:20, 1e-5"}, "must rise"),
        ({"learning_rate": "5e-5:1000, 1e-5:100"}, "must rise"),
        ({"learning_rate": "5e-5:1000, 1e-5:1000"}, "must rise"),
        ({"learning_rate": "5e-5:9000, 1e-5:100, 1e-6"}, "must rise"),
        ({"learning_rate": "5e-5:9000, 20"}, "above 0 and below 10"),
        ({"learning_rate": "5e-5:0, 1e-5"}, "must rise"),
        ({"learning_rate": "5e-5:-3"}, "must rise"),
        ({"learning_rate": "5e-5:-1, 1e-5:100"}, "only the last piece"),
        ({"learning_rate": "1e-3, 1e-4"}, "only the last piece"),
        ({"prior.weight": 1.0, "prior.prompts": []}, "prior.prompts is empty"),
    ],
)
def test_what_contradicts_itself_is_refused(settings: dict[str, object], words: str) -> None:
    complete = {"model": "a", "images": "b", "output": "c.pt"} if any("." in k or "_" in k for k in settings) else {}
    with pytest.raises(ConfigError, match=words):
        read_config(None, {**complete, **settings}).check()


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match="no preset 'portrait'"):
        read_config(preset="portrait")


def test_plain_values_give_the_configuration_back() -> None:
    config = read_config(None, {"data.templates": ["a", "b"], "hypernetwork.layer_structure": [1, 1.5, 1]})
    assert schema.read(Config, schema.plain(config)) == config


# -- learning rates


def test_piecewise_rates_hold_up_to_their_step() -> None:
    rate = parse_rate("5e-5:100, 1e-5:200, 1e-6", 1000)
    assert [rate.at(step) for step in (1, 100, 101, 200, 201, 1000)] == [5e-5, 5e-5, 1e-5, 1e-5, 1e-6, 1e-6]


def test_pieces_count_the_steps_of_the_file_to_start_from() -> None:
    text = "5e-5:100, 1e-5:1000, 1e-6"
    assert [parse_rate(text, 2, 1000).at(step) for step in (1, 2)] == [1e-6, 1e-6]
    assert [parse_rate(text, 600, 500).at(step) for step in (1, 500, 501, 600)] == [1e-5, 1e-5, 1e-6, 1e-6]
    assert parse_rate(text, 20, 5000).at(20) == 1e-6
    assert parse_rate("1e-3:10, 1e-4:-1", 50, 5).at(5) == 1e-3
    assert parse_rate("1e-3:10, 1e-4:-1", 50, 5).at(6) == 1e-4


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_single_rate_falls_over_the_steps_of_this_training(schedule: str) -> None:
    alone, after = parse_rate("1e-3", 40), parse_rate("1e-3", 40, 1000)
    for step in (1, 7, 40):
        assert after.at(step, schedule=schedule, warmup=5) == alone.at(step, schedule=schedule, warmup=5)


def test_the_webuis_word_for_the_end() -> None:
    assert parse_rate("1e-3:10, 1e-4:-1", 50).at(50) == 1e-4


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.integers(2, 5000), st.sampled_from(["linear", "cosine"]))
def test_a_single_rate_falls_to_a_hundredth_and_never_rises(number: float, steps: int, schedule: str) -> None:
    rate = parse_rate(str(number), steps)
    seen = [rate.at(step, schedule=schedule) for step in range(1, steps + 1, max(steps // 50, 1))]
    assert seen[0] == number
    assert seen == sorted(seen, reverse=True)
    assert rate.at(steps, schedule=schedule) == pytest.approx(number / 100)


def test_warmup_rises_evenly() -> None:
    rate = parse_rate("1e-3", 100)
    assert [rate.at(step, warmup=4) for step in (1, 2, 4, 50)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 2001-99-99", "month must be in"),
        ("steps: !!float x", "could not convert"),
        ("steps: !!timestamp x", "no YAML for a configuration"),
        ("[" * 3000, "nests too deeply"),
        ("steps: 1" + "0" * 200, "bits"),
        ("min_snr: 1" + "0" * 400, "min_snr"),
        ("steps: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("steps: &a [*a]", "steps is"),
    ],
)
def test_what_yaml_lets_through_is_a_mistake_like_others(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config(written(tmp_path / "config.yaml", text))


def test_aliases_that_unfold_to_billions_of_values_are_told_in_few_words(tmp_path: Path) -> None:
    aliased = "x"
    for name in "abcdefghijk":
        aliased = f"[&{name} [{aliased}], {', '.join([f'*{name}'] * 9)}]"
    with pytest.raises(ConfigError, match="model is") as caught:
        read_config(written(tmp_path / "config.yaml", f"model: {aliased}"))
    assert len(str(caught.value)) < 400


def test_a_file_that_is_too_large_for_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration"):
        read_config(written(tmp_path / "config.yaml", "# " + "x" * 2_000_000))
