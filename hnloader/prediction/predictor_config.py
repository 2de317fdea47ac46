"""The settings of the training of a predictor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hnloader.errors import ConfigError
from hnloader.files import expanded
from hnloader.prediction.design import DesignConfig
from hnloader.training import schema
from hnloader.training.config import MIN_SIZE, DataConfig
from hnloader.training.schema import setting

_REQUIRED = {
    "model": "Name a diffusers folder, a checkpoint file or a model on the Hugging Face Hub.",
    "styles": "Name the folder with the styles, each a folder of images.",
    "output": "Name the file to write, such as predictor.safetensors.",
}


@dataclass(frozen=True)
class PredictorConfig:
    """All settings of the training of a predictor; `hnloader train-predictor --init` prints them."""

    model: str = setting("", "The model: a diffusers folder, a .safetensors file, or a name on the Hugging Face Hub.")
    model_config: str = setting(
        "", "For a single file without network access: a diffusers folder of the same kind of model."
    )
    styles: str = setting("", "The folder with the styles: one folder of images for each, with captions as in train.")
    output: str = setting("", "The file to write, such as predictor.safetensors.")

    steps: int = setting(10_000, "Number of training steps.", least=1, most=10_000_000)
    batch_size: int = setting(8, "Styles per step, with one image of each to denoise.", least=1, most=1024)
    learning_rate: float = setting(1e-3, "Highest learning rate.", least=0, above=True)
    lr_scheduler: Literal["constant", "cosine", "linear"] = setting(
        "cosine", "Decay of the learning rate to a hundredth: constant (none), linear or cosine."
    )
    lr_warmup_steps: int = setting(100, "Steps over which the learning rate rises from 0.", least=0)
    weight_decay: float = setting(0.0, "Weight decay of AdamW.", least=0, most=1)
    max_grad_norm: float = setting(1.0, "Clip the gradients to this norm. 0: off.", least=0)
    ema_decay: float = setting(
        0.998, "Decay of the moving average of the weights (EMA), which is saved. 0: off.", least=0, most=0.99999
    )
    detail_weight: float = setting(
        0.0, "Weight of the parts of an image that differ from its usual color, such as small shapes. 0: off.", least=0
    )
    noise_bias: float = setting(
        0.0,
        "Preference for noisy timesteps, which decide about colors. 0: all are equally frequent; 1: half of them\n"
        "are in the noisiest quarter.",
        least=0,
        most=10,
    )
    precision: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "Data type of the frozen model; float16 requires a GPU."
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, about a third slower."
    )
    seed: int = setting(1, "Random seed. The same seed, styles and settings give the same predictor.", least=0)

    most_images: int = setting(
        7, "Most images of a style to predict from. The number in each step is random, from 1.", least=1, most=20
    )
    captions: Literal["auto", "sidecar", "metadata", "filename", "template"] = setting(
        "auto", "Source of the captions, as data.captions of `hnloader train`."
    )
    caption_dropout: float = setting(
        0.1, "Fraction of images without a caption, so that CFG keeps working.", least=0, most=1
    )
    resolution: int = setting(0, "Side of the square images in pixels. 0: the model's resolution.", least=0, most=4096)
    validation_split: float = setting(
        0.02,
        "Fraction of styles for validation, at least one of five or more. They are never trained on.",
        least=0,
        most=0.5,
    )

    save_every_n_steps: int = setting(250, "Steps between saved states, from which --resume continues.", least=1)
    save_total_limit: int = setting(2, "Number of saved states to keep.", least=1)
    validate_every_n_steps: int = setting(1000, "Steps between validations. 0: none.", least=0)

    design: DesignConfig = setting(DesignConfig, "The sizes of the predictor.")

    def check(self) -> None:
        """Raise ConfigError for a missing setting or a contradiction."""
        for key, advice in _REQUIRED.items():
            if not getattr(self, key):
                raise ConfigError(f"Setting {key!r} is missing. {advice}")
        for key in ("model", "styles", "output", "model_config"):
            expanded(getattr(self, key))
        if Path(self.output).suffix.lower() != ".safetensors":
            raise ConfigError(f"Setting 'output': expected the suffix .safetensors, got {self.output!r}.")
        if 0 < self.resolution < MIN_SIZE:
            raise ConfigError(f"Setting 'resolution': expected 0 or at least {MIN_SIZE}, got {self.resolution}.")
        self.design.architecture()

    @property
    def data(self) -> DataConfig:
        """The settings for images and captions."""
        return DataConfig(captions=self.captions, buckets=False, random_flip=False)


def read_predictor_config(path: Path | None = None, overrides: dict[str, Any] | None = None) -> PredictorConfig:
    """Read the settings from a YAML file, then the overrides; dotted keys name nested settings.

    Raises:
        ConfigError: The file is unreadable, or a key or value is wrong.
    """
    given = schema.merged(schema.plain(PredictorConfig()), schema.read_file(PredictorConfig, path) if path else {})
    return schema.read(PredictorConfig, schema.merged(given, schema.nested(overrides or {})))


def predictor_template() -> str:
    """Return a commented YAML file with every setting at its default."""
    return schema.write(PredictorConfig())
