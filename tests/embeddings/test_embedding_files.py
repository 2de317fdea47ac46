"""Embedding files in every form of the webuis and diffusers."""

from __future__ import annotations

import json
import pickle
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import hnloader
from hnloader import (
    CorruptFileError,
    HypernetworkError,
    UnknownFormatError,
    UnsafeFileError,
    UnsupportedArchitectureError,
)
from hnloader.demo import pipeline_folder
from hnloader.embeddings import Embedding, load_embedding, save_embedding
from hnloader.pipelines import load_model
from tests.support.builders import simple_tree, write

VECTORS = torch.randn(3, 768, generator=torch.Generator().manual_seed(0))
VECTORS_G = torch.randn(3, 1280, generator=torch.Generator().manual_seed(1))
WEBUI = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": VECTORS},
    "name": "style",
    "step": 1200,
    "sd_checkpoint": "7460a6fa",
    "sd_checkpoint_name": "v1-4",
}


def equal(found: Embedding, vectors: torch.Tensor = VECTORS, vectors_g: torch.Tensor | None = None) -> bool:
    second = (found.vectors_g is None) == (vectors_g is None)
    if vectors_g is not None and found.vectors_g is not None:
        second = torch.equal(found.vectors_g, vectors_g)
    return found.vectors.dtype == vectors.dtype and torch.equal(found.vectors, vectors) and second


# -- what others write


@pytest.mark.parametrize("legacy", [False, True])
def test_the_webui_form(legacy: bool, tmp_path: Path) -> None:
    found = load_embedding(write(tmp_path / "file.pt", WEBUI, legacy=legacy))
    assert equal(found)
    assert (found.name, found.step, found.sd_checkpoint, found.sd_checkpoint_name) == (
        "file",
        1200,
        "7460a6fa",
        "v1-4",
    )
    assert found.metadata == {}
    assert (found.count, found.width, found.made_for) == (3, 768, "SD 1")


@pytest.mark.parametrize("legacy", [False, True])
def test_parameter_dict_of_the_first_trainer(legacy: bool, tmp_path: Path) -> None:
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    content = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}
    found = load_embedding(write(tmp_path / "style.pt", content, legacy=legacy))
    assert equal(found)
    assert found.name == "style"
    assert found.step is None


@pytest.mark.parametrize("vectors", [VECTORS, VECTORS[0], VECTORS.half(), VECTORS.bfloat16()])
def test_the_diffusers_form(vectors: torch.Tensor, tmp_path: Path) -> None:
    found = load_embedding(write(tmp_path / "learned_embeds.bin", {"<my-style>": vectors}))
    assert (found.name, found.token) == ("learned_embeds", "<my-style>")
    assert equal(found, vectors.reshape(-1, 768))
    save_embedding(found, tmp_path / "again.bin")
    assert list(torch.load(tmp_path / "again.bin", weights_only=True)) == ["<my-style>"]


def test_safetensors_of_each_kind(tmp_path: Path) -> None:
    save_file({"emb_params": VECTORS}, tmp_path / "one.safetensors")
    save_file({"<word>": VECTORS[0]}, tmp_path / "two.safetensors")
    save_file({"clip_l": VECTORS, "clip_g": VECTORS_G}, tmp_path / "xl.safetensors")
    one, two, xl = (load_embedding(tmp_path / f"{name}.safetensors") for name in ("one", "two", "xl"))
    assert (one.name, two.name, xl.name) == ("one", "two", "xl")
    assert equal(one)
    assert equal(two, VECTORS[:1])
    assert equal(xl, VECTORS, VECTORS_G)
    assert xl.made_for == "SDXL"


def test_several_tokens_need_a_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "learned_embeds.bin", {"<a>": VECTORS, "<b>": 2 * VECTORS})
    with pytest.raises(UnsupportedArchitectureError, match="'<a>', '<b>'"):
        load_embedding(path)
    with pytest.raises(UnsupportedArchitectureError, match="'<c>'"):
        load_embedding(path, token="<c>")
    assert equal(load_embedding(path, token="<b>"), 2 * VECTORS)


@pytest.mark.parametrize("ending", [".pt", ".bin", ".safetensors"])
def test_files_name_embeddings(ending: str, tmp_path: Path) -> None:
    """A pair `X` and `X-neg`, copied and renamed, has two names, whatever the inner names."""
    for name in ("bad-artist-anime", "bad-artist-anime-neg", "with.dots"):
        path = tmp_path / f"{name}{ending}"
        if ending == ".safetensors":
            save_file({"emb_params": VECTORS}, path, metadata={"name": "bad-artist-2"})
        else:
            write(path, {**WEBUI, "name": "bad-artist-2"})
        assert load_embedding(path).name == name


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "made_for"),
    [
        ({"clip_l": VECTORS}, "SD 1"),
        ({"clip_g": VECTORS_G}, "SDXL, second encoder only"),
        ({"clip_l": VECTORS, "clip_g": VECTORS_G, "t5xxl": torch.ones(5, 4096)}, "SD 3"),
        ({"clip_l": VECTORS, "t5xxl": torch.ones(5, 4096)}, "SD 3"),
        ({"clip_g": VECTORS_G, "t5xxl": torch.ones(5, 4096)}, "SD 3"),
        ({"clip_l": VECTORS, "clip_g": VECTORS_G, "clip_h": torch.ones(3, 8)}, "SDXL"),
        ({"emb_params": VECTORS, "emb_more": torch.ones(3, 8)}, "SD 1"),
    ],
)
def test_all_encoders_are_kept(content: dict[str, torch.Tensor], made_for: str, ending: str, tmp_path: Path) -> None:
    write(tmp_path / "a.pt", content)
    save_file(content, tmp_path / "a.safetensors")
    found = load_embedding(tmp_path / f"a{ending}")
    assert found.made_for == made_for
    save_embedding(found, tmp_path / "b.safetensors")
    kept = load_file(tmp_path / "b.safetensors")
    if list(content) == ["clip_l"]:
        content = {"emb_params": VECTORS}  # the same, in the form that every program loads
    assert kept.keys() == content.keys()
    assert all(torch.equal(kept[key], tensor) for key, tensor in content.items())
    save_embedding(found, tmp_path / "c.pt")
    again = load_embedding(tmp_path / "c.pt")
    assert again.others.keys() == found.others.keys()
    assert equal(again, found.vectors, found.vectors_g)


# -- what is written


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".png"])
def test_webui_form_keeps_training_facts(ending: str, tmp_path: Path) -> None:
    given = Embedding(VECTORS, name="style", step=1200, sd_checkpoint="7460a6fa", sd_checkpoint_name="v1-4")
    save_embedding(given, tmp_path / f"other{ending}")
    found = load_embedding(tmp_path / f"other{ending}")
    assert equal(found)
    assert (found.name, found.step, found.sd_checkpoint, found.sd_checkpoint_name, found.metadata) == (
        "style" if ending == ".png" else "other",
        1200,
        "7460a6fa",
        "v1-4",
        {},
    )


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_an_embedding_for_both_encoders(ending: str, tmp_path: Path) -> None:
    save_embedding(Embedding(VECTORS, VECTORS_G), tmp_path / f"xl{ending}")
    assert equal(load_embedding(tmp_path / f"xl{ending}"), VECTORS, VECTORS_G)


@pytest.mark.parametrize("ending", [".bin", ".pt", ".safetensors"])
def test_vectors_for_the_second_encoder_alone_keep_their_token(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{ending}"
    save_embedding(Embedding(VECTORS_G), path, form="diffusers", token="<word>")
    assert load_embedding(path).token == "<word>"
    assert equal(load_embedding(path), VECTORS_G)


@pytest.mark.parametrize("ending", [".bin", ".pt", ".safetensors"])
def test_the_diffusers_form_has_one_tensor_by_its_token(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{ending}"
    save_embedding(Embedding(VECTORS, name="style"), path, form="diffusers")
    written = load_file(path) if ending == ".safetensors" else torch.load(path, weights_only=True)
    assert list(written) == ["<style>"]
    assert torch.equal(written["<style>"], VECTORS)


def test_the_webui_form_loads_with_weights_only(tmp_path: Path) -> None:
    save_embedding(Embedding(VECTORS, name="style", step=7), tmp_path / "style.pt")
    written = torch.load(tmp_path / "style.pt", weights_only=True)
    assert torch.equal(written["string_to_param"]["*"], VECTORS)
    assert written["string_to_token"] == {"*": 265}
    assert (written["name"], written["step"]) == ("style", 7)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    width=st.sampled_from([1, 7, 128, 768, 1024]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    ending=st.sampled_from([".pt", ".bin", ".safetensors"]),
)
def test_round_trips_are_bit_for_bit(
    count: int, width: int, dtype: torch.dtype, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / f"file{ending}"
    vectors = torch.randn(count, width).to(dtype)
    save_embedding(Embedding(vectors), path)
    assert equal(load_embedding(path), vectors)


def test_diffusers_loads_written_files(tmp_path: Path) -> None:
    pipe = load_model(pipeline_folder()).pipeline
    width = pipe.text_encoder.config.hidden_size
    vectors = torch.randn(2, width)
    for number, (ending, form) in enumerate([(".pt", "webui"), (".bin", "diffusers"), (".safetensors", "diffusers")]):
        path, token = tmp_path / f"style{number}{ending}", f"<style{number}>"
        save_embedding(Embedding(vectors, name=f"style{number}"), path, form=form)
        pipe.load_textual_inversion(str(path), token=token)
        ids = pipe.tokenizer.convert_tokens_to_ids([token, f"{token}_1"])
        assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], vectors)


@pytest.mark.parametrize(
    ("name", "form", "word"),
    [
        ("ink.pt", "webui", "ink"),
        ("ink.bin", "diffusers", "<ink>"),
        ("ink.safetensors", "diffusers", "<ink>"),
        ("ink.safetensors", "webui", "emb_params"),
        ("sdxl.safetensors", "webui", None),
    ],
)
def test_the_word_that_diffusers_adds(name: str, form: Any, word: str | None, tmp_path: Path) -> None:
    """The table of docs/embeddings.md."""
    pipe = load_model(pipeline_folder()).pipeline
    vectors = torch.randn(2, pipe.text_encoder.config.hidden_size)
    second = torch.zeros(2, 1280) if word is None else None
    save_embedding(Embedding(vectors, second, name="ink"), tmp_path / name, form=form)
    before = set(pipe.tokenizer.get_vocab())
    if word is None:
        with pytest.raises(ValueError, match="incorrect"):
            pipe.load_textual_inversion(str(tmp_path / name))
        found = load_embedding(tmp_path / name)
        pipe.load_textual_inversion(found.vectors, token="<ink>", text_encoder=pipe.text_encoder)
        word = "<ink>"
    else:
        pipe.load_textual_inversion(str(tmp_path / name))
    assert set(pipe.tokenizer.get_vocab()) - before == {word, f"{word}_1"}


# -- refused files


def test_other_files_are_refused(tmp_path: Path) -> None:
    hypernetwork = write(tmp_path / "style.pt", simple_tree(8))
    lora = write(tmp_path / "lora.pt", {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)})
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "page.pt").write_text("<!doctype html><html></html>")
    for path, words in [
        (hypernetwork, "hypernetwork"),
        (lora, "LoRA"),
        (tmp_path / "lora.safetensors", "LoRA"),
        (tmp_path / "page.pt", "web page"),
    ]:
        with pytest.raises(UnknownFormatError) as caught:
            load_embedding(path)
        assert str(caught.value).startswith(str(path))
        assert words in str(caught.value)


def test_unknown_formats_are_refused_with_the_endings_of_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "style.bin"
    path.write_bytes(bytes(range(255, 1, -1)))
    with pytest.raises(UnknownFormatError) as caught:
        load_embedding(path)
    text = str(caught.value)
    assert text.startswith(f"{path} is ") and text.endswith(".")
    assert set(re.findall(r"\.\w+", text.removeprefix(str(path)))) == {".safetensors", ".pt", ".bin", ".png", ".webp"}


def test_too_many_tensors_are_no_embedding(tmp_path: Path) -> None:
    names = ["emb_params", *(f"more.{index}" for index in range(64))]
    save_file({name: torch.zeros(1, 768) for name in names}, tmp_path / "many.safetensors")
    with pytest.raises(UnknownFormatError, match="65"):
        load_embedding(tmp_path / "many.safetensors")


def test_small_matrices_are_refused(tmp_path: Path) -> None:
    for content in (
        {"test_key": torch.zeros(10, 10)},
        {"weight": torch.zeros(768, 768)},
        {"a": torch.zeros(2, 768), "b": torch.zeros(3, 5)},
        {"a": torch.zeros(2, 768), "b": 5},
    ):
        tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
        save_file(tensors, tmp_path / "file.safetensors")
        for path in (write(tmp_path / "file.pt", content), tmp_path / "file.safetensors"):
            if path.suffix == ".safetensors" and len(tensors) < len(content):
                continue
            with pytest.raises(UnknownFormatError, match="file"):
                load_embedding(path)
            with pytest.raises(UnknownFormatError) as caught:
                hnloader.load(path)
            assert "embedding" not in str(caught.value)
    assert load_embedding(write(tmp_path / "word.pt", {"<tiny>": torch.zeros(10, 10)})).width == 10
    assert load_embedding(write(tmp_path / "word.pt", {"sks": torch.zeros(2, 1024)})).token == "sks"


def test_messages_name_embeddings(tmp_path: Path) -> None:
    """The name of a folder may contain the word."""
    folder = tmp_path / "a hypernetwork"
    folder.mkdir()

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("x",))

    contents: list[object] = [
        [1, 2],
        torch.zeros(3),
        {},
        {"a": 1},
        {"state_dict": {"a": torch.zeros(2)}},
        {**WEBUI, "x": Trap()},
        Trap(),
        {"lora_te.lora_up.weight": torch.zeros(2, 2)},
        {"string_to_param": {}},
    ]
    paths = [write(folder / f"{index}.pt", content) for index, content in enumerate(contents)]
    for name, data in [
        ("code.pt", b"PK\x03\x04" + bytes(99)),
        ("junk.pt", bytes(range(256)) * 3),
        ("text.pt", b"hello, this is a text"),
        ("image.jpg", b"\xff\xd8\xff" + bytes(99)),
        ("damaged.png", b"\x89PNG\r\n\x1a\n" + bytes(99)),
        ("damaged.safetensors", (40).to_bytes(8, "little") + b"{" + bytes(99)),
        ("empty.pt", b""),
        ("pickle.pt", pickle.dumps({"a": 1})),
    ]:
        (folder / name).write_bytes(data)
        paths.append(folder / name)
    for path in paths:
        with pytest.raises(HypernetworkError) as caught:
            load_embedding(path)
        message = str(caught.value)
        assert message.startswith(str(path)), message
        assert "hypernetwork" not in message.replace(str(path), ""), message


def test_code_in_the_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = write(tmp_path / "style.pt", {**WEBUI, "name": Trap()})
    with pytest.raises(UnsafeFileError, match=r"style\.pt"):
        load_embedding(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ({"string_to_param": {"*": torch.full((2, 768), torch.nan)}}, CorruptFileError, "NaN"),
        ({"string_to_param": {"*": torch.zeros(2, 3, 4)}}, UnsupportedArchitectureError, r"shape \[2, 3, 4\]"),
        ({"string_to_param": {"*": torch.zeros(2, 768, dtype=torch.int64)}}, UnsupportedArchitectureError, "int64"),
        ({"string_to_param": {}}, UnsupportedArchitectureError, "0 embeddings"),
        ({"string_to_param": VECTORS}, UnsupportedArchitectureError, "string_to_param.*tensor"),
        ({"string_to_param": [VECTORS]}, UnsupportedArchitectureError, "string_to_param.*list"),
        ({"string_to_param": None, "name": "x"}, UnsupportedArchitectureError, "string_to_param.*NoneType"),
        ({"string_to_param": {"*": 1}}, UnsupportedArchitectureError, "0 embeddings"),
        ({"clip_l": {"a": VECTORS}, "clip_g": VECTORS_G}, UnsupportedArchitectureError, "clip_l.*dict"),
        ({"clip_l": VECTORS, "t5xxl": torch.zeros(2, 3, 4)}, UnsupportedArchitectureError, "t5xxl"),
        ({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(1, 1280)}, UnsupportedArchitectureError, "2 vectors"),
    ],
)
def test_contradictions_are_refused(
    content: dict[str, object], error: type[HypernetworkError], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "style.pt", content)
    with pytest.raises(error, match=words) as caught:
        load_embedding(path)
    assert str(caught.value).startswith(str(path))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    save_embedding(Embedding(VECTORS), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for name, data in [("cut.safetensors", whole[:-5]), ("cut.pt", write(tmp_path / "a.pt", WEBUI).read_bytes()[:900])]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptFileError, match=name):
            load_embedding(tmp_path / name)


@pytest.mark.parametrize("name", ["style.ptt", "style", "style.jpg"])
def test_unknown_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match=r"\.pt"):
        save_embedding(Embedding(VECTORS), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_metadata_of_others_is_kept(tmp_path: Path) -> None:
    save_file(
        {"emb_params": VECTORS}, tmp_path / "a.safetensors", metadata={"format": "pt", "notes": "mine", "step": "9"}
    )
    found = load_embedding(tmp_path / "a.safetensors")
    assert (found.metadata, found.step) == ({"notes": "mine"}, 9)
    save_embedding(found, tmp_path / "b.safetensors")
    assert load_embedding(tmp_path / "b.safetensors").metadata == {"notes": "mine"}
    header = (tmp_path / "b.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + size])["__metadata__"]["step"] == "9"


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits on the size of files are POSIX")
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ".png"])
def test_a_full_disk_keeps_the_old_file(suffix: str, tmp_path: Path) -> None:
    import resource

    path = tmp_path / f"style{suffix}"
    save_embedding(Embedding(VECTORS, name="old"), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(HypernetworkError, match=f"style{suffix}"):
            save_embedding(Embedding(VECTORS, name="new"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
