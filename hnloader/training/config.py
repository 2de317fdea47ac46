"""The settings of a training run, their defaults and the presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hnloader.activations import ACTIVATIONS, canonical_activation
from hnloader.errors import ConfigError, UnsupportedArchitectureError
from hnloader.files import expanded
from hnloader.formats.registry import writable_formats
from hnloader.network import Architecture
from hnloader.scopes import Scope
from hnloader.training import schema
from hnloader.training.learning_rate import parse_learning_rate
from hnloader.training.optimizers import auto_learning_rate
from hnloader.training.predictor_config import PredictorConfig
from hnloader.training.schema import setting

__all__ = ["Config", "read_config"]

Method = Literal["hypernetwork", "embedding", "lora", "predictor"]
Initialization = Literal["Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"]
Optimizer = Literal["auto", "adamw", "adamw8bit", "prodigy", "lion", "adafactor", "muon", "sgd"]
# As `start_from`: a hypernetwork that is predicted from the training images.
PREDICT = "predict"
# Pixels, of images and of `data.resolution`.
MIN_SIZE = 32
# The value of `hypernetwork.scopes` that gives each layer its own weights.
EACH_LAYER = ("each",)
_REQUIRED = {
    "model": "Name a diffusers folder, a checkpoint file or a model on the Hugging Face Hub.",
    "images": "Name the folder with the training images, or set texts for a language model.",
    "output": "Name the file to write, such as style.pt.",
}


@dataclass(frozen=True)
class HypernetworkConfig:
    """The architecture of a new hypernetwork."""

    layer_structure: tuple[float, ...] = setting(
        (),
        "Sizes of the layers as multiples of the width; the first and the last are 1. Empty: [1, 2, 1], and on images\n"
        "for a model narrower than 512, a hidden layer of about 1,024 in its widest self-attention, at most [1, 8, 1].",
        least=0,
        above=True,
    )
    activation: str = setting(
        "mish", "Activation between the layers: linear, relu, leakyrelu, elu, swish, tanh, mish, gelu, ..."
    )
    activate_output: bool = setting(False, "Apply the activation after the last layer, too.")
    norm: bool = setting(False, "Add a LayerNorm after each layer.")
    dropout: float = setting(
        0.0, "Dropout after the inner layers. It reduces overfitting to few images.", least=0, most=0.9
    )
    initialization: Initialization = setting(
        "Normal", "Initial weights: Normal, XavierUniform, XavierNormal, KaimingUniform or KaimingNormal."
    )
    widths: tuple[int, ...] = setting(
        (),
        "Context widths to train; empty for all widths of the model. 768 alone (SD 1) trains only cross-attention.",
        least=1,
    )
    scopes: tuple[str, ...] = setting(
        (),
        "Layers to train, each entry with its own weights, in place of widths: '576:self:0-7' for the layers 0 to 7\n"
        "of width 576; or the one entry 'each' for all layers, each with its own. The output must be a .safetensors\n"
        "file. docs/format.md has the rules.",
    )

    def architecture(self) -> Architecture:
        """Return the architecture, or raise ConfigError for an impossible one."""
        structure = self.layer_structure or (1, 2, 1)
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1:
            raise ConfigError(
                f"Setting 'hypernetwork.layer_structure': expected a list that begins and ends with 1, "
                f"got {list(structure)}."
            )
        if self.widths and self.scopes:
            raise ConfigError("Setting 'hypernetwork.scopes': found widths as well. Set one of them.")
        for scope in () if self.scopes == EACH_LAYER else self.scopes:
            try:
                Scope.parse(scope)
            except ValueError as error:
                raise ConfigError(f"Setting 'hypernetwork.scopes': {error}") from error
        try:
            activation = canonical_activation(self.activation)
        except UnsupportedArchitectureError as error:
            raise ConfigError(
                f"Setting 'hypernetwork.activation': expected linear, {', '.join(ACTIVATIONS)}, "
                f"got {self.activation[:80]!r}."
            ) from error
        return Architecture(
            tuple(int(ratio) if ratio == int(ratio) else ratio for ratio in structure),
            activation,
            self.norm,
            (0.0, *([self.dropout] * (len(structure) - 2)), 0.0),
            self.activate_output and activation is not None,
        )


@dataclass(frozen=True)
class EmbeddingConfig:
    """The initial vectors of a new textual-inversion embedding."""

    num_vectors: int = setting(4, "Number of vectors; each takes one token of a prompt.", least=1, most=75)
    initialization_text: str = setting("*", "Words whose vectors are the initial values; repeated up to num_vectors.")
    placeholder_token: str = setting(
        "", "The word for the embedding in captions and prompts; empty for <name of the output>."
    )


@dataclass(frozen=True)
class LoraConfig:
    """The layers of a new LoRA."""

    rank: int = setting(
        16, "Rank of each layer's change: higher ranks learn more and make larger files.", least=1, most=1024
    )
    alpha: float = setting(
        0.0, "Scale of the change, divided by the rank. 0: the rank, so that the scale is 1.", least=0
    )
    targets: Literal["kv", "attention", "all"] = setting(
        "attention",
        "Layers to change: kv (keys and values, as a hypernetwork), attention (all four projections), or all\n"
        "(also the feed-forward layers).",
    )
    dropout: float = setting(0.0, "Dropout of the input. It reduces overfitting to few images.", least=0, most=0.9)


@dataclass(frozen=True)
class DataConfig:
    """The training images and their captions."""

    captions: Literal["auto", "sidecar", "metadata", "filename", "template"] = setting(
        "auto",
        "Source of the captions: sidecar (a .txt next to the image), metadata (metadata.jsonl, metadata.csv or\n"
        "captions.json in the folder), filename, or template (the same sentences for all images). auto takes the\n"
        "first of sidecar and metadata that exists, else template.",
    )
    templates: tuple[str, ...] = setting(
        ("an image in the style of {name}", "{name}, detailed", "a rendering, {name} style"),
        "Captions for images without one. {name} is the name of the output, {filename} the words of the file name.",
    )
    prefix: str = setting("", "Text before every caption.")
    resolution: int = setting(
        0,
        "Side of a square image in pixels; other shapes have about the same area. 0: the model's resolution.",
        least=0,
        most=4096,
    )
    buckets: bool = setting(
        True, "Keep the aspect ratio, in sizes of about `resolution` squared. false crops a square."
    )
    random_flip: bool = setting(
        True,
        "Mirror half of the images, except those whose caption names left or right. Turn it off for images of text or\n"
        "of asymmetric subjects.",
    )
    random_shift: int = setting(
        0,
        "Shift images at random by up to this many pixels in each direction. It delays overfitting to few images.\n"
        "Each shift is encoded once, which takes long for large models and images.",
        least=0,
        most=64,
    )
    background: Literal["white", "black", "gray"] = setting("white", "Color behind transparent parts.")
    masks: bool = setting(
        False, "Weight the loss by a mask: NAME.mask.png next to the image, or its transparency. White counts."
    )
    repeats: int = setting(1, "Repeats of each image per epoch.", least=1, most=1000)
    caption_dropout: float = setting(
        0.1, "Fraction of steps that train without a caption, so that CFG keeps working.", least=0, most=1
    )
    validation_split: float = setting(
        0.1,
        "Fraction of images or texts for validation, at least one if there are five or more. They are never trained\n"
        "on.",
        least=0,
        most=0.5,
    )


@dataclass(frozen=True)
class TextConfig:
    """The training texts of a language model."""

    documents: Literal["file", "paragraph", "line"] = setting(
        "file", "What is a document in a .txt file: the whole file, each paragraph, or each line."
    )
    block_size: int = setting(
        0,
        "The most tokens of a document that the model reads at once; longer texts are cut into pieces. A batch has\n"
        "about batch_size times as many tokens. 0: 512, or as many as the model reads.",
        least=0,
        most=1_000_000,
    )


@dataclass(frozen=True)
class PriorConfig:
    """Prior preservation, which keeps what the model knows."""

    weight: float = setting(0.0, "Weight of a second loss that preserves the images of other prompts. 0: off.", least=0)
    prompts: tuple[str, ...] = setting(
        ("a photograph", "a painting", "a person", "a landscape", "an animal"), "Prompts to preserve."
    )


@dataclass(frozen=True)
class PreviewConfig:
    """Images or texts generated during the training, always with the same seeds."""

    prompts: tuple[str, ...] = setting((), "Prompts of the previews; empty for the first captions or words of texts.")
    every_n_steps: int = setting(250, "Steps between previews. 0: none.", least=0)
    count: int = setting(3, "Number of captions or texts to take when `prompts` is empty.", least=1, most=16)
    num_inference_steps: int = setting(20, "Sampling steps.", least=1, most=200)
    guidance_scale: float = setting(7.0, "Classifier-free guidance (CFG) scale.", least=1, most=30)
    max_tokens: int = setting(60, "The most tokens of a text.", least=1, most=10_000)
    seed: int = setting(1, "Seed of the first prompt; each next prompt adds 1.", least=0)
    strengths: tuple[float, ...] = setting(
        (0, 0.5, 1),
        "Strengths of a hypernetwork or LoRA, side by side in a grid at each preview. 0 is the plain model, which is\n"
        "drawn once. Empty for no grid.",
    )


@dataclass(frozen=True)
class Config:
    """All settings of a training run.

    `hnloader train --init` prints each setting with its meaning and default. `read_config` makes a checked instance
    from a file, a mapping or both.

    Example:
        >>> from hnloader.training import Config
        >>> config = Config(model="sd15/", images="images/", output="style.pt", learning_rate=5e-5)
        >>> config.name, config.steps, config.data.random_flip
        ('style', 1200, True)
    """

    model: str = setting(
        "",
        "The model: a diffusers folder, a .safetensors file, or a name on the Hugging Face Hub. For texts: a folder\n"
        "of transformers, a .gguf file, or a name.",
    )
    model_config: str = setting(
        "",
        "For a single file without network access: a diffusers folder of the same kind of model. Otherwise diffusers\n"
        "downloads the configuration from the Hub once (a few MB).",
    )
    images: str = setting("", "The folder with the training images.")
    texts: str = setting(
        "",
        "In place of images, to train a language model: a folder with .txt or .jsonl files, one such file, or a\n"
        "folder that datasets saved. A line of a .jsonl has text, or prompt and completion, or messages.",
    )
    styles: str = setting(
        "",
        "In place of images, to train a predictor: a folder with a folder of images for each style, or of texts for a\n"
        "language model.",
    )
    output: str = setting("", "The file to write, such as style.pt (which every webui loads) or style.safetensors.")
    method: Method = setting("hypernetwork", "hypernetwork, embedding (textual inversion), lora, or predictor.")
    start_from: str = setting(
        "",
        "A hypernetwork, embedding, LoRA or predictor to train further, such as a webui's .pt (with its .pt.optim\n"
        "next to it).\n"
        "A hypernetwork can also start near a LoRA's changes of keys and values.\n"
        "Its steps are added to those of this training run in the output, and count for a learning_rate with steps.\n"
        "predict: a hypernetwork that `hnloader predict` makes of the training images.",
    )
    start_predictor: str = setting(
        "", "For start_from: predict, a predictor of the model; empty for that of the bundled model."
    )

    steps: int = setting(1200, "Number of training steps.", least=1, most=10_000_000)
    batch_size: int = setting(
        0,
        "Images per batch, or blocks of text. 0: 4 images on a model narrower than 512, else 1, which takes less\n"
        "memory; 1 block of text.",
        least=0,
        most=1024,
    )
    gradient_accumulation_steps: int = setting(
        0,
        "Batches per training step. 0: if batch_size is also 0, as many as make 4 images; else 1.",
        least=0,
        most=1024,
    )
    learning_rate: str | float = setting(
        "auto",
        "A number; or the webui's '5e-5:100, 1e-5:1000, 1e-6' (a rate up to a step, then the next); or auto: with\n"
        "adamw, adamw8bit and adafactor 1e-4 for a hypernetwork or LoRA and 5e-3 for an embedding; with muon four\n"
        "times that, with lion a tenth, with sgd a thousand times, with prodigy 1. For a hypernetwork or LoRA on a\n"
        "narrower model, the rate is higher, at most ten times: as many times as the widest self-attention is\n"
        "narrower than 1280. For texts, it is three times as high.",
    )
    lr_scheduler: Literal["constant", "cosine", "linear"] = setting(
        "cosine", "Decay of a single learning rate to a hundredth: constant (none), linear or cosine."
    )
    lr_warmup_steps: int = setting(20, "Steps over which the learning rate rises from 0.", least=0)
    optimizer: Optimizer = setting(
        "auto",
        "auto: muon for a hypernetwork on images and for a predictor, else adamw. Or adamw, muon, sgd, adafactor; or\n"
        "from other packages: adamw8bit (bitsandbytes), prodigy (prodigyopt), lion (lion-pytorch).",
    )
    weight_decay: float = setting(0.0, "Weight decay of the optimizer.", least=0, most=1)
    max_grad_norm: float = setting(1.0, "Clip the gradients to this norm. 0: off.", least=0)
    ema_decay: float = setting(
        0.0,
        "Decay of the moving average of the weights (EMA), such as 0.99. The average is saved and shown. 0: off.",
        least=0,
        most=0.99999,
    )
    snr_gamma: float = setting(5.0, "Gamma of the min-SNR loss weights, which balance the timesteps. 0: off.", least=0)
    noise_offset: float = setting(0.0, "Noise offset per channel, for darker darks; 0.05 is usual.", least=0)
    precision: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        "Data type of the frozen model; the trained weights stay float32. float16 requires a GPU and scales\n"
        "the loss so that small gradients are kept. bfloat16 works everywhere.",
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, about a third slower."
    )
    deterministic: bool = setting(
        False,
        "Give the same bits each time on a GPU, also after --resume; two to three times slower. A CPU always\n"
        "gives the same bits.",
    )
    seed: int = setting(1, "Random seed. The same seed, images and settings give the same file.", least=0)

    save_every_n_steps: int = setting(250, "Steps between saved states, from which --resume continues.", least=1)
    save_total_limit: int = setting(2, "Number of saved states to keep.", least=1)
    validate_every_n_steps: int = setting(50, "Steps between validations. 0: none.", least=0)
    early_stopping_patience: int = setting(
        0, "Stop after this many validations in a row without a lower validation loss. 0: off.", least=0
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        (), "Send losses and previews to installed trackers: tensorboard, wandb."
    )

    hypernetwork: HypernetworkConfig = setting(HypernetworkConfig, "The architecture of the hypernetwork.")
    embedding: EmbeddingConfig = setting(EmbeddingConfig, "The initial vectors of the embedding.")
    lora: LoraConfig = setting(LoraConfig, "The layers of the LoRA.")
    data: DataConfig = setting(DataConfig, "The images and their captions.")
    text: TextConfig = setting(TextConfig, "The texts of a language model.")
    predictor: PredictorConfig = setting(
        PredictorConfig, "A network that predicts hypernetworks from images or texts (method predictor)."
    )
    prior: PriorConfig = setting(PriorConfig, "Prior preservation, for a style that affects unrelated prompts.")
    previews: PreviewConfig = setting(PreviewConfig, "Images or texts generated during the training.")

    def check(self) -> None:
        """Raise ConfigError for a missing setting or a contradiction."""
        for key, advice in _REQUIRED.items():
            if not getattr(self, key) and not (key == "images" and (self.texts or self.method == "predictor")):
                raise ConfigError(f"Setting {key!r} is missing. {advice}")
        for key in ("model", "images", "texts", "output", "model_config", "start_from", "start_predictor", "styles"):
            expanded(getattr(self, key))  # raises for a NUL, or a user without a home folder
        self._check_output()
        if self.texts:
            self._check_texts()
        if self.styles or self.method == "predictor":
            self._check_styles()
        if 0 < self.data.resolution < MIN_SIZE:
            raise ConfigError(
                f"Setting 'data.resolution': expected 0 or at least {MIN_SIZE}, got {self.data.resolution}."
            )
        if self.data.captions == "template" and not self.data.templates:
            raise ConfigError("Setting 'data.templates' is empty, and data.captions is 'template'. Add a template.")
        if self.start_from == PREDICT and self.method != "hypernetwork":
            raise ConfigError(f"Setting 'start_from': 'predict' requires the method hypernetwork, got {self.method!r}.")
        if self.prior.weight and not self.prior.prompts:
            raise ConfigError("Setting 'prior.prompts' is empty, and prior.weight is set. Add a prompt.")
        self.hypernetwork.architecture()
        parse_learning_rate(self.learning_rate_text, self.steps)

    def _check_styles(self) -> None:
        if self.method != "predictor":
            raise ConfigError(f"Setting 'styles': expected the method predictor, got {self.method!r}.")
        if not self.styles:
            raise ConfigError(
                "Setting 'styles' is missing. Name the folder with a folder of images or texts for each style."
            )
        if self.images or self.texts:
            raise ConfigError("Setting 'styles': found images or texts as well. Set one of them.")
        for key in ("buckets", "random_flip", "random_shift", "masks"):
            if getattr(self.data, key):
                raise ConfigError(f"Setting 'data.{key}': a predictor is trained on whole squares. Turn it off.")
        if self.prior.weight:
            raise ConfigError("Setting 'prior.weight': it is for other methods than predictor. Remove it.")
        self.predictor.design.architecture()

    def _check_output(self) -> None:
        suffixes = [suffix for each in writable_formats() for suffix in each.suffixes]
        if self.method == "lora" and self.texts:
            suffixes = [""]  # a folder, as peft writes it
        elif self.method in ("lora", "predictor") or self.texts or self.hypernetwork.scopes:
            suffixes = [".safetensors"]  # no other program reads a LoRA or scopes in a .pt
        if Path(self.output).suffix.lower() not in suffixes:
            wanted = (
                f"the suffix {' or '.join(suffixes)}" if any(suffixes) else "the name of a folder, without a suffix"
            )
            raise ConfigError(f"Setting 'output': expected {wanted}, got {self.output!r}.")

    def _check_texts(self) -> None:
        if self.images:
            raise ConfigError("Setting 'texts': found images as well. Set one of them.")
        if self.method == "embedding":
            raise ConfigError("Setting 'method': an embedding is for images. For texts, use hypernetwork or lora.")
        if self.prior.weight:
            raise ConfigError("Setting 'prior.weight': prior preservation is for images. For texts, set it to 0.")

    @property
    def name(self) -> str:
        """The stem of the output."""
        return Path(self.output).stem

    @property
    def placeholder_token(self) -> str:
        """The word for the embedding in captions and prompts."""
        return self.embedding.placeholder_token or f"<{self.name}>"

    @property
    def optimizer_name(self) -> Optimizer:
        """The optimizer; "auto" becomes the one for the method."""
        if self.optimizer != "auto":
            return self.optimizer
        on_images = self.method == "hypernetwork" and not self.texts
        return "muon" if on_images or self.method == "predictor" else "adamw"

    @property
    def learning_rate_text(self) -> str:
        """The learning rate as text; "auto" becomes the number for the optimizer and the method on SD 1."""
        if self.learning_rate == "auto":
            return f"{auto_learning_rate(self.optimizer_name, self.method, texts=bool(self.texts)):g}"
        return str(self.learning_rate)


PRESETS: dict[str, dict[str, Any]] = {
    # A style shows everywhere in the image: mirrored images and many kinds of captions help.
    "style": {},
    # A subject may be asymmetric, and each caption names it.
    "subject": {
        "data": {"random_flip": False, "templates": ["a photo of {name}", "{name}", "an image of {name}"]},
        "hypernetwork": {"dropout": 0.1},
        "prior": {"weight": 0.5},
    },
    # Each step is another task for it, so the steps are many, and their average counts.
    "predictor": {
        "method": "predictor",
        "steps": 10_000,
        "batch_size": 8,
        "lr_warmup_steps": 50,
        "ema_decay": 0.998,
        "snr_gamma": 0.0,
        "validate_every_n_steps": 500,
        "data": {"buckets": False, "random_flip": False, "validation_split": 0.05},
        "previews": {"every_n_steps": 1000},
    },
}


def read_config(path: Path | None = None, overrides: dict[str, Any] | None = None, preset: str = "style") -> Config:
    """Read the settings of a training run: the preset, then the file, then the overrides.

    Args:
        path: A YAML file, as `hnloader train --init` prints it. Default: no file.
        overrides: Settings by key; a dotted key such as "data.random_flip" names a nested one.
        preset: "style", "subject" or "predictor".

    Returns:
        The settings. `Config.check` says whether they are complete.

    Raises:
        ConfigError: The file is unreadable, or a key or value is wrong.
        MissingExtraError: PyYAML, which reads the file, is missing.

    Example:
        >>> from hnloader.training import read_config
        >>> config = read_config(overrides={"output": "cat.pt", "data.resolution": 768}, preset="subject")
        >>> config.data.resolution, config.data.random_flip
        (768, False)
    """
    if preset not in PRESETS:
        raise ConfigError(f"Preset: expected {' or '.join(map(repr, PRESETS))}, got {preset!r}.")
    merged = schema.merged(schema.plain(Config()), PRESETS[preset])
    if path is not None:
        merged = schema.merged(merged, schema.read_file(Config, path))
    config = schema.read(Config, schema.merged(merged, schema.nested(overrides or {})))
    if config.texts and config.output and config.method == "hypernetwork" and not Path(config.output).suffix:
        config = replace(config, output=f"{config.output}.safetensors")
    return config


def template(preset: str = "style") -> str:
    """Return a commented YAML file with every setting at its default."""
    return schema.write(read_config(preset=preset))
