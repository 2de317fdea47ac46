"""What a training is told: the schema of `hnloader train config.yaml`, its defaults and its presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hnloader.activations import ACTIVATIONS, canonical_activation
from hnloader.errors import ConfigError, UnsupportedArchitectureError
from hnloader.files import expanded
from hnloader.formats.registry import writable_formats
from hnloader.network import Architecture
from hnloader.training import schema
from hnloader.training.optimizers import auto_rate
from hnloader.training.rates import parse_rate
from hnloader.training.schema import setting

Method = Literal["hypernetwork", "embedding"]
Initialization = Literal["Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"]
# Pixels, of images and of `data.resolution`.
SMALLEST = 32


@dataclass(frozen=True)
class HypernetworkConfig:
    """How the hypernetwork is built."""

    layer_structure: tuple[float, ...] = setting(
        (1, 2, 1), "Sizes of the layers as multiples of the width; first and last 1.", least=0, above=True
    )
    activation: str = setting(
        "relu", "Activation between the layers: linear, relu, leakyrelu, elu, swish, tanh, mish, gelu, ..."
    )
    activate_output: bool = setting(False, "Activate the last layer as well.")
    norm: bool = setting(False, "A LayerNorm after each layer.")
    dropout: float = setting(
        0.0, "Dropout after the inner layers: helps against learning few images by heart.", least=0, most=0.9
    )
    initialization: Initialization = setting(
        "Normal", "How the weights begin: Normal, XavierUniform, XavierNormal, KaimingUniform, KaimingNormal."
    )
    widths: tuple[int, ...] = setting(
        (),
        "Context widths to train; empty for all that the model has. 768 alone (SD 1) leaves self-attention out.",
        least=1,
    )

    def architecture(self) -> Architecture:
        """The architecture.

        Raises:
            ConfigError: an impossible one.
        """
        structure = self.layer_structure
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1:
            raise ConfigError(
                f"hypernetwork.layer_structure is {list(structure)}; a list that begins and ends with 1 was expected"
            )
        try:
            activation = canonical_activation(self.activation)
        except UnsupportedArchitectureError as error:
            raise ConfigError(f"hypernetwork.activation: {error}. Known: linear, {', '.join(ACTIVATIONS)}") from error
        inner = len(structure) - 2
        rates = (0.0, *([self.dropout] * inner), 0.0)
        return Architecture(
            tuple(int(ratio) if ratio == int(ratio) else ratio for ratio in structure),
            activation,
            self.norm,
            rates,
            self.activate_output and activation is not None,
        )


@dataclass(frozen=True)
class EmbeddingConfig:
    """How the textual-inversion embedding begins."""

    vectors: int = setting(4, "How many vectors: how many tokens of the prompt it takes.", least=1, most=75)
    initial_text: str = setting("*", "Words whose vectors it begins with; repeated where there are fewer than vectors.")
    token: str = setting("", "The word that stands for it in captions and prompts; empty for <name of the output>.")


@dataclass(frozen=True)
class DataConfig:
    """The images and their captions."""

    captions: Literal["auto", "sidecar", "metadata", "filename", "template"] = setting(
        "auto",
        "Where captions come from: sidecar (a .txt beside the image), metadata (metadata.jsonl, metadata.csv or\n"
        "captions.json in the folder), filename, or template (the same sentences for all). auto takes the first of\n"
        "sidecar and metadata that an image has, else template.",
    )
    templates: tuple[str, ...] = setting(
        ("a picture in the style of {name}", "{name}, detailed", "a rendering, {name} style"),
        "Sentences for images without captions; {name} is the name of the output, {filename} the file's words.",
    )
    prefix: str = setting("", "Put before every caption.")
    resolution: int = setting(
        0, "Pixels of the side of a square; others have about as many. 0 takes the model's own.", least=0, most=4096
    )
    buckets: bool = setting(
        True, "Keep each image's shape, in sizes of about `resolution` x `resolution`; false cuts a square out."
    )
    flip: bool = setting(True, "Show mirrored images half of the time. Not for text or asymmetric subjects.")
    shift: int = setting(
        0,
        "Move images at random by up to so many pixels in each direction, edges repeated: few images are then\n"
        "learned by heart later. Every place is encoded once, which takes long where models and images are large.",
        least=0,
        most=64,
    )
    background: Literal["white", "black", "gray"] = setting("white", "What shows through transparent parts.")
    masks: bool = setting(
        False, "Weight the loss by a mask: the image's transparency, or NAME.mask.png beside it (white counts)."
    )
    repeats: int = setting(1, "How often each image comes in a round.", least=1, most=1000)
    caption_dropout: float = setting(
        0.1, "How often an image is shown without caption, so that guidance works as before.", least=0, most=1
    )
    held_out: float = setting(
        0.1,
        "Share of the images, at least one of five or more, kept for measuring; never trained on.",
        least=0,
        most=0.5,
    )


@dataclass(frozen=True)
class PriorConfig:
    """Prior preservation: what the model already knows is held in place."""

    weight: float = setting(
        0.0, "Weight of a second loss that keeps images of other prompts as they are; 0 turns it off.", least=0
    )
    prompts: tuple[str, ...] = setting(
        ("a photograph", "a painting", "a person", "a landscape", "an animal"),
        "Prompts whose images are to stay as the model makes them.",
    )


@dataclass(frozen=True)
class PreviewConfig:
    """Images made during the training, always with the same seeds."""

    prompts: tuple[str, ...] = setting((), "Prompts of the previews; empty for the first captions.")
    every: int = setting(250, "Steps between previews; 0 makes none.", least=0)
    count: int = setting(3, "How many captions are taken where no prompts are given.", least=1, most=16)
    steps: int = setting(20, "Sampling steps.", least=1, most=200)
    guidance: float = setting(7.0, "Classifier-free guidance (CFG) scale.", least=1, most=30)
    seed: int = setting(1, "Seed of the first; the others count on.", least=0)


@dataclass(frozen=True)
class Config:
    """Everything that a training is told."""

    model: str = setting("", "The model: a diffusers folder, a single .safetensors file, or a name on the hub.")
    model_config: str = setting(
        "",
        "For a single file without network access: a diffusers folder of the same kind of model. Else diffusers takes\n"
        "its configuration from the hub, a few MB, once.",
    )
    images: str = setting("", "The folder with the images.")
    output: str = setting("", "The file to write: .pt, which every webui loads, or .safetensors.")
    method: Method = setting("hypernetwork", "hypernetwork, or embedding (textual inversion).")
    start_from: str = setting(
        "",
        "A hypernetwork or embedding to train on, for example a webui's .pt (with its .pt.optim beside it). Its steps\n"
        "are added to those of this training in the file, and count for a learning_rate with steps.",
    )

    steps: int = setting(1500, "How many steps to train.", least=1, most=10_000_000)
    batch_size: int = setting(1, "Images in a step.", least=1, most=1024)
    accumulation: int = setting(1, "Steps whose gradients are added up before the weights move.", least=1, most=1024)
    learning_rate: str | float = setting(
        "auto",
        "A number; or the webui's '5e-5:100, 1e-5:1000, 1e-6' (a rate up to a step, then the next); or auto: with\n"
        "adamw, adamw8bit and adafactor 1e-4 for a hypernetwork and 5e-3 for an embedding, with lion a tenth of\n"
        "that, with prodigy 1, with sgd a thousand times that.",
    )
    schedule: Literal["constant", "cosine", "linear"] = setting(
        "cosine", "How a single learning rate falls: constant, linear or cosine, down to a hundredth."
    )
    warmup: int = setting(20, "Steps over which the learning rate rises from nothing.", least=0)
    optimizer: Literal["adamw", "adamw8bit", "prodigy", "lion", "adafactor", "sgd"] = setting(
        "adamw",
        "adamw, sgd, adafactor; or of packages of their own: adamw8bit (bitsandbytes), prodigy (prodigyopt),\n"
        "lion (lion-pytorch).",
    )
    weight_decay: float = setting(0.0, "Weight decay of the optimizer.", least=0, most=1)
    clip: float = setting(1.0, "Longest gradient that is taken as it is; longer ones are shortened. 0: never.", least=0)
    ema: float = setting(
        0.0,
        "Average of the weights over time, e.g. 0.99: what is saved and shown is the average. 0: none.",
        least=0,
        most=0.99999,
    )
    min_snr: float = setting(
        5.0, "Weights the loss by min-SNR with this gamma, so that no noise level dominates; 0 turns it off.", least=0
    )
    noise_offset: float = setting(0.0, "Noise per channel added to the noise: darker darks, 0.05 is usual.", least=0)
    precision: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        "In which the model lies in memory and computes; what is trained stays float32. float16 needs a graphics\n"
        "card; its losses are scaled so that small gradients are not lost. bfloat16 works everywhere.",
    )
    checkpointing: bool = setting(False, "Less memory, about a third slower: the UNet's values are computed twice.")
    reproducible: bool = setting(
        False,
        "On a graphics card: the same bits each time, from a resumed training too, at two to three times the time. A\n"
        "processor gives the same bits anyway.",
    )
    seed: int = setting(1, "Of everything random: the same seed, images and settings give the same file.", least=0)

    save_every: int = setting(250, "Steps between saved states, from which --resume goes on.", least=1)
    keep: int = setting(2, "How many saved states are kept.", least=1)
    measure_every: int = setting(50, "Steps between measurements of the held-out loss; 0 makes none.", least=0)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        (), "Losses and previews to these as well, where their packages are installed: tensorboard, wandb."
    )
    patience: int = setting(
        0, "Stop when the held-out loss was not better for this many measurements; 0: never.", least=0
    )

    hypernetwork: HypernetworkConfig = setting(HypernetworkConfig, "How the hypernetwork is built.")
    embedding: EmbeddingConfig = setting(EmbeddingConfig, "How the embedding begins.")
    data: DataConfig = setting(DataConfig, "The images and their captions.")
    prior: PriorConfig = setting(PriorConfig, "Prior preservation, against a style that skews everything.")
    previews: PreviewConfig = setting(PreviewConfig, "Images made during the training.")

    def check(self) -> None:
        """Raise ConfigError where something is missing or contradicts itself."""
        for key, what in (
            ("model", "a diffusers folder, a checkpoint file or a name on the hub"),
            ("images", "a folder with images"),
            ("output", "a file to write, such as style.pt"),
        ):
            if not getattr(self, key):
                raise ConfigError(f"{key} is missing: {what}")
        for key in ("model", "images", "output", "model_config", "start_from"):
            expanded(getattr(self, key))  # a NUL, or a user without a home folder
        endings = [ending for one in writable_formats() for ending in one.suffixes]
        if Path(self.output).suffix.lower() not in endings:
            raise ConfigError(f"output is {self.output!r}; a name ending in {' or '.join(endings)} was expected")
        if 0 < self.data.resolution < SMALLEST:
            raise ConfigError(f"data.resolution is {self.data.resolution}; 0, or {SMALLEST} and more were expected")
        if self.data.captions == "template" and not self.data.templates:
            raise ConfigError("data.captions is 'template', but data.templates is empty")
        if self.prior.weight and not self.prior.prompts:
            raise ConfigError("prior.weight is set, but prior.prompts is empty")
        self.hypernetwork.architecture()
        parse_rate(self.rate_text, self.steps)

    @property
    def name(self) -> str:
        """The name of what is trained: the stem of the output."""
        return Path(self.output).stem

    @property
    def token(self) -> str:
        """The word that stands for the embedding in captions and prompts."""
        return self.embedding.token or f"<{self.name}>"

    @property
    def rate_text(self) -> str:
        """The learning rate as text, with auto decided."""
        if self.learning_rate == "auto":
            return f"{auto_rate(self.optimizer, self.method):g}"
        return str(self.learning_rate)


PRESETS: dict[str, dict[str, Any]] = {
    # A style is in textures and colors everywhere in the image: shown mirrored, with many kinds of captions.
    "style": {},
    # A subject may be asymmetric, and is named in each caption.
    "subject": {
        "data": {"flip": False, "templates": ["a photo of {name}", "{name}", "an image of {name}"]},
        "hypernetwork": {"dropout": 0.1},
        "prior": {"weight": 0.5},
    },
}


def read_config(path: Path | None = None, overrides: dict[str, Any] | None = None, preset: str = "style") -> Config:
    """A configuration: the preset, then the file, then `overrides` (keys may be dotted: "data.flip").

    Raises:
        ConfigError: the file cannot be read, or a key or value is impossible.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}; {' or '.join(PRESETS)} was expected")
    merged = _merged(schema.plain(Config()), PRESETS[preset])
    if path is not None:
        merged = _merged(merged, schema.read_file(Config, path))
    for key, value in (overrides or {}).items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        merged = _merged(merged, nested)
    return schema.read(Config, merged)


def template(preset: str = "style") -> str:
    """A commented YAML file with every setting at its default."""
    return schema.write(read_config(preset=preset))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def replaced(config: Config, **changes: object) -> Config:
    """The configuration with some of its top-level settings changed."""
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
