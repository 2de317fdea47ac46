"""Images from settings: tags, options, seeds, samplers, img2img, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hnloader
from hnloader.errors import (
    HypernetworkError,
    HypernetworkNotFoundError,
    ModelError,
    NoMatchingSitesError,
    PromptTagError,
    SettingsError,
)
from hnloader.generation import Settings, Step, generate, sweep
from hnloader.infotext import parse
from hnloader.library import Library
from hnloader.pipelines import SAMPLERS, Model, find_sampler, load_model, make_scheduler, sampler_label
from hnloader.prompt import Tag, parse_prompt
from tests.support.tiny_model import save_checkpoint, save_hypernetwork

CAT = Settings("a cat", seed=3, steps=3)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    loaded = load_model(tiny_model, device="cpu")
    before = {name: tensor.clone() for name, tensor in loaded.pipeline.unet.state_dict().items()}
    scheduler = loaded.pipeline.scheduler
    yield loaded
    after = loaded.pipeline.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert loaded.pipeline.scheduler is scheduler
    assert hnloader.attachments(loaded.pipeline) == []


@pytest.fixture
def library(styles: Path) -> Library:
    return Library([styles])


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def only(model: Model, settings: Settings, library: Library | None = None) -> np.ndarray:
    (image,) = generate(model, settings, library)
    return pixels(image.image)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_a_tag_in_the_prompt_does_what_attach_does(model: Model, library: Library, styles: Path) -> None:
    tagged = only(model, replace(CAT, prompt="a cat <hypernet:ink:0.8:start=0.3,v=0.5,block=up>"), library)
    application = hnloader.Application(styles / "ink.pt", {"up": 0.8}, start=0.3, v=0.5)
    with hnloader.attach(model.pipeline, application):
        expected = model.pipeline(
            "a cat", num_inference_steps=3, guidance_scale=7.0, generator=torch.Generator().manual_seed(3)
        )
    assert difference(tagged, pixels(expected.images[0])) == 0
    assert difference(tagged, only(model, CAT)) > 5


def test_tags_come_before_the_settings_hypernetworks_and_order_matters(
    model: Model, library: Library, styles: Path
) -> None:
    oil = (Tag(str(styles / "oil.safetensors"), 0.5),)
    both = only(model, replace(CAT, prompt="a cat <hypernet:ink:0.8>", hypernetworks=oil), library)
    tagged = only(model, replace(CAT, prompt="a cat <hypernet:ink:0.8><hypernet:oil:0.5>"), library)
    reversed_ = only(model, replace(CAT, prompt="a cat <hypernet:oil:0.5><hypernet:ink:0.8>"), library)
    assert difference(both, tagged) == 0
    assert difference(both, reversed_) > 0


def test_strength_zero_changes_nothing(model: Model, library: Library) -> None:
    assert difference(only(model, replace(CAT, prompt="a cat<hypernet:ink:0>"), library), only(model, CAT)) == 0


def test_any_image_of_a_run_can_be_generated_separately(model: Model) -> None:
    settings = replace(CAT, sampler="euler_a", count=3)
    images = list(generate(model, settings))
    assert [image.seed for image in images] == [3, 4, 5]
    alone = only(model, replace(settings, count=1, seed=5))
    assert difference(alone, pixels(images[2].image)) == 0
    assert difference(alone, pixels(images[1].image)) > 0


def test_without_a_seed_each_run_reports_a_random_one(model: Model) -> None:
    (first,) = generate(model, replace(CAT, seed=None))
    (second,) = generate(model, replace(CAT, seed=None))
    assert first.seed != second.seed
    assert difference(pixels(first.image), only(model, replace(CAT, seed=first.seed))) == 0


def test_the_infotext_makes_the_same_image_again(model: Model, library: Library, styles: Path) -> None:
    hypernetworks = (Tag(str(styles / "oil.safetensors"), 0.5, end=0.7),)
    settings = replace(CAT, prompt="a <hypernet:ink:0.8> cat", hypernetworks=hypernetworks, sampler="heun")
    (image,) = generate(model, replace(settings, negative_prompt="dog", guidance=4.5), library)
    info = parse(str(image.infotext))
    assert info.prompt == "a  cat <hypernet:ink:0.8> <hypernet:oil:0.5:end=0.7>"
    again = Settings(
        info.prompt,
        info.negative_prompt,
        seed=int(info.settings["Seed"]),
        steps=int(info.settings["Steps"]),
        guidance=float(info.settings["CFG scale"]),
        sampler=info.settings["Sampler"],
    )
    assert difference(only(model, again, library), pixels(image.image)) == 0
    assert info.settings["Size"] == "32x32"
    assert info.settings["Model"] == "tiny"
    ink = hnloader.inspect(styles / "ink.pt").short_hash
    assert info.settings["Hypernet hashes"].startswith(f"ink: {ink}, oil: ")
    assert info.settings["Version"] == f"hnloader {hnloader.__version__}"


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_and_is_named_in_the_infotext(model: Model, name: str) -> None:
    (image,) = generate(model, replace(CAT, sampler=name))
    assert image.infotext.settings["Sampler"] == SAMPLERS[name].label
    assert find_sampler(SAMPLERS[name].label) is SAMPLERS[name]


def test_samplers_differ_and_an_unknown_sampler_lists_them(model: Model) -> None:
    euler, heun = (only(model, replace(CAT, sampler=name)) for name in ("euler", "heun"))
    assert difference(euler, heun) > 0
    assert sampler_label(make_scheduler(find_sampler("DPM++ 2M karras"), model.pipeline.scheduler.config)) == (
        "DPM++ 2M Karras"
    )
    with pytest.raises(ModelError, match=r"'eular'.*euler, euler_a"):
        only(model, replace(CAT, sampler="eular"))


def test_size_is_width_then_height(model: Model) -> None:
    assert only(model, replace(CAT, width=48, height=32)).shape == (32, 48, 3)


def test_an_init_image_changes_the_result(model: Model) -> None:
    image = Image.radial_gradient("L").resize((100, 50)).convert("RGBA")
    little, much = (only(model, replace(CAT, init_image=image, denoise=share, steps=10)) for share in (0.1, 1))
    other = only(model, replace(CAT, init_image=image.transpose(Image.Transpose.ROTATE_90), denoise=0.1, steps=10))
    assert little.shape == (32, 32, 3)
    assert difference(little, much) > 0
    assert difference(little, other) > 0
    (made,) = generate(model, replace(CAT, init_image=image, denoise=0.5))
    assert made.infotext.settings["Denoising strength"] == "0.5"


def test_a_hypernetwork_and_its_window_act_in_img2img(model: Model, library: Library) -> None:
    image = Image.radial_gradient("L")
    settings = replace(CAT, init_image=image, denoise=0.5, steps=8)
    plain = only(model, settings)
    assert difference(only(model, replace(settings, prompt="a cat<hypernet:ink:1>"), library), plain) > 0
    late = only(model, replace(settings, prompt="a cat<hypernet:ink:1:start=0.5>"), library)
    assert difference(late, plain) > 0


def test_progress_counts_every_step(model: Model) -> None:
    steps: list[Step] = []
    list(generate(model, replace(CAT, count=2), progress=steps.append))
    assert steps == [Step(image, 2, step, 3) for image in (1, 2) for step in (1, 2, 3)]


def test_between_images_and_after_a_stop_the_model_is_unchanged(model: Model, library: Library) -> None:
    settings = replace(CAT, prompt="a cat <hypernet:ink:1>", count=3, sampler="euler")
    scheduler = model.pipeline.scheduler
    run = generate(model, settings, library)
    next(run)
    assert hnloader.attachments(model.pipeline) == []
    assert model.pipeline.scheduler is scheduler
    run.close()
    assert list(run) == []

    def stop(step: Step) -> None:
        assert len(hnloader.attachments(model.pipeline)) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(generate(model, settings, library, progress=stop))
    assert hnloader.attachments(model.pipeline) == []
    assert model.pipeline.scheduler is scheduler


def test_a_sweep_goes_through_the_strengths_for_each_seed(model: Model, library: Library) -> None:
    settings = replace(CAT, prompt="a cat <hypernet:ink:0.8>", count=2)
    cells = list(sweep(model, settings, [0, 0.5, 1], library))
    assert [(factor, image.seed) for factor, image in cells] == [
        (factor, seed) for seed in (3, 4) for factor in (0, 0.5, 1)
    ]
    assert difference(pixels(cells[0][1].image), only(model, CAT)) == 0
    half = only(model, replace(CAT, prompt="a cat <hypernet:ink:0.4>"), library)
    assert difference(pixels(cells[1][1].image), half) == 0
    assert cells[1][1].infotext.prompt == "a cat <hypernet:ink:0.4>"
    with pytest.raises(SettingsError, match="no hypernetwork"):
        next(sweep(model, CAT, [0, 1]))


@pytest.mark.parametrize(
    ("changes", "error", "facts"),
    [
        ({"steps": 0}, SettingsError, "Steps: found 0"),
        ({"steps": 10_001}, SettingsError, "10,000"),
        ({"count": 0}, SettingsError, "Count: found 0"),
        ({"seed": -1}, SettingsError, "4294967295"),
        ({"seed": 2**32 - 1, "count": 2}, SettingsError, "4294967295"),
        ({"guidance": float("nan")}, SettingsError, "Guidance: found nan"),
        ({"denoise": 0.0}, SettingsError, "Denoise: found 0.0"),
        ({"width": 30}, SettingsError, "Width: found 30 .*multiple of 8"),
        ({"denoise": 0.1, "init_image": Image.new("RGB", (8, 8))}, SettingsError, "10 steps"),
        ({"prompt": "a cat <hypernet:inc:1>"}, HypernetworkNotFoundError, "'ink'"),
        ({"prompt": "a cat <hypernet:ink:x>"}, PromptTagError, "strength is 'x'"),
        ({"prompt": "a cat <hypernet:sd1:1>"}, NoMatchingSitesError, "768"),
        ({"prompt": "a cat <hypernet:ink:1:block=upp>"}, NoMatchingSitesError, "upp"),
        ({"hypernetworks": (Tag("/nowhere/ink.pt"),)}, HypernetworkNotFoundError, "/nowhere/ink.pt"),
        ({"hypernetworks": (Tag("gone.pt"),)}, HypernetworkNotFoundError, r"^Path 'gone.pt'.*styles\S* \(\d+ file"),
        ({"hypernetworks": (Tag("sub/gone"),)}, HypernetworkNotFoundError, r"^Path 'sub/gone'.*styles\S* \(\d+ file"),
        ({"hypernetworks": (Tag("gone"),)}, HypernetworkNotFoundError, r"^Hypernetwork 'gone'.*styles\S* \(\d+ file"),
    ],
)
def test_impossible_settings_are_refused_before_sampling(
    model: Model, library: Library, changes: dict[str, object], error: type[HypernetworkError], facts: str
) -> None:
    with pytest.raises(error, match=facts):
        next(generate(model, replace(CAT, **changes), library))
    assert hnloader.attachments(model.pipeline) == []


def test_a_setting_may_name_a_path_but_a_tag_may_not(model: Model, styles: Path) -> None:
    path = styles / "ink.pt"
    with pytest.raises(HypernetworkNotFoundError, match=r"ink\.pt"):
        next(generate(model, replace(CAT, prompt=f"a cat <hypernet:{path}:1>"), Library([])))
    assert only(model, replace(CAT, hypernetworks=(Tag(str(path)),))).shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["one.safetensors", "one.ckpt"])
def test_a_single_file_makes_the_same_image_as_its_folder(
    model: Model, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    path = save_checkpoint(tiny_model, tmp_path / name)
    single = load_model(path, device="cpu", config=tiny_model)
    assert single.name == "one"
    (image,) = generate(single, CAT)
    assert difference(pixels(image.image), only(model, CAT)) == 0
    assert image.infotext.settings["Model hash"] == single.hash
    assert len(single.hash or "") == 10


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("empty", None, "no model_index.json"),
        ("notes.txt", b"text", r"notes\.txt.*\.safetensors or \.ckpt"),
        ("broken.safetensors", b"\x00" * 100, r"broken\.safetensors"),
        ("broken.ckpt", b"not a checkpoint", r"broken\.ckpt"),
        ("gone.safetensors", ..., r"gone\.safetensors"),
        ("./gone", ..., "gone"),
    ],
)
def test_other_files_are_refused_as_models(
    tmp_path: Path, tiny_model: Path, name: str, content: object, facts: str
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ModelError, match=facts):
        load_model(path if content is not ... else name, config=tiny_model)


def test_a_checkpoint_without_network_asks_for_a_configuration(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    path = save_checkpoint(tiny_model, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match=r"one\.safetensors.*diffusers folder"):
        load_model(path)
    with pytest.raises(ModelError, match=r"someone/something .*Hugging Face Hub"):
        load_model("someone/something")


def test_a_folder_with_a_checkpoint_in_it_names_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ModelError, match=r"model\.ckpt"):
        load_model(tmp_path)


def test_device_and_dtype(tiny_model: Path) -> None:
    assert load_model(tiny_model, device="cpu").pipeline.unet.dtype == torch.float32
    assert load_model(tiny_model, device="cpu", dtype="bfloat16").pipeline.unet.dtype == torch.bfloat16
    with pytest.raises(ModelError, match=r"'int8'.*float16"):
        load_model(tiny_model, dtype="int8")
    with pytest.raises(ModelError, match="'tpu'"):
        load_model(tiny_model, device="tpu")


def test_a_composition_finds_its_members_in_the_library(model: Model, styles: Path, tmp_path: Path) -> None:
    save_hypernetwork(tmp_path / "third.pt", seed=3)
    (tmp_path / "mix.hns").write_text("['ink', 'third']")
    library = Library([tmp_path, styles])
    mixed = only(model, replace(CAT, prompt="a cat <hypernet:mix:1>"), library)
    chained = only(model, replace(CAT, prompt="a cat <hypernet:ink:1><hypernet:third:1>"), library)
    assert difference(mixed, chained) <= 1
    assert parse_prompt("<hypernet:mix:1>").tags == (Tag("mix"),)
