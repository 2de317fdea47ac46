"""The settings of a predictor: its sizes, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass

from hnloader.activations import ACTIVATIONS, canonical_activation
from hnloader.errors import ConfigError, UnsupportedArchitectureError
from hnloader.network import Architecture
from hnloader.texts import shown
from hnloader.training.schema import setting

_MOST = 4096


@dataclass(frozen=True)
class DesignConfig:
    """The sizes of a predictor, and the architecture of the hypernetworks that it predicts."""

    layer_structure: tuple[float, ...] = setting(
        (1, 1, 1), "Sizes of the layers of the hypernetworks as multiples of the width: 1, a ratio, 1.", least=0.01
    )
    activation: str = setting("relu", "Activation of the hypernetworks: linear, relu, mish, ...")
    core_size: int = setting(24, "Rows and columns of the core that is predicted for each side.", least=1, most=_MOST)
    style_size: int = setting(128, "Numbers that describe a style.", least=1, most=_MOST)
    embedding_size: int = setting(32, "Numbers of the embedding of a side.", least=1, most=_MOST)
    hidden_size: int = setting(256, "Values of the hidden layers.", least=1, most=_MOST)
    per_layer: bool = setting(
        False, "Predict sides for each attention layer, not for each width. Only .safetensors files can hold them."
    )

    def architecture(self) -> Architecture:
        """Return the architecture of the hypernetworks, or raise ConfigError for an impossible one."""
        structure = self.layer_structure
        if len(structure) != 3 or structure[0] != 1 or structure[-1] != 1 or structure[1] > 16:
            raise ConfigError(
                "Setting 'predictor.design.layer_structure': expected 1, a ratio of at most 16, and 1, got "
                f"{list(structure)}."
            )
        try:
            activation = canonical_activation(self.activation)
        except UnsupportedArchitectureError as error:
            raise ConfigError(
                f"Setting 'predictor.design.activation': expected linear, {', '.join(ACTIVATIONS)}, got "
                f"{shown(self.activation, 80)}."
            ) from error
        return Architecture(tuple(int(each) if each == int(each) else each for each in structure), activation)


@dataclass(frozen=True)
class PredictorConfig:
    """A new predictor and its batches."""

    most_examples: int = setting(
        5,
        "Most images or texts of a style to predict from. The number in each step is random, from 1.",
        least=1,
        most=20,
    )
    encoder_batch_size: int = setting(
        32,
        "Styles of each step from which the encoder also learns by itself, without the model. 0: off.",
        least=0,
        most=4096,
    )
    detail_weight: float = setting(
        1.0, "Weight of the parts of an image that differ from its usual color, such as small shapes. 0: off.", least=0
    )
    noise_bias: float = setting(
        0.0,
        "Preference for noisy timesteps, which decide about colors. 0: all are equally frequent; 1: half of them\n"
        "are in the noisiest quarter.",
        least=0,
        most=10,
    )
    design: DesignConfig = setting(DesignConfig, "The sizes of the predictor.")
