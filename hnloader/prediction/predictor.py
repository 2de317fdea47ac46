"""The network that predicts hypernetworks: images or texts in, the weights of a hypernetwork out.

An encoder summarizes each example, an image or a text, and the mean over the examples is the style. Each side of the
hypernetwork, such as the keys of width 768, has an embedding. One shared network maps the style and the embedding to a
small core and to an output bias. The weights of a side are then

    W1 = A,  b1 = a,  W2 = B core Q,  b2 = E h

with bases A, a, B, Q and E that the predictor learned for the side, and h the last hidden layer. Only the core and h
depend on the examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.activations import make_activation
from hnloader.network import SIDES, Hypernetwork, SideName, linear_layers
from hnloader.prediction.image_encoder import ImageEncoder
from hnloader.prediction.style_encoder import ExampleKind, StyleEncoder
from hnloader.prediction.text_encoder import TextEncoder
from hnloader.scopes import Scope
from hnloader.training.predictor_config import DesignConfig

ENCODERS: Mapping[ExampleKind, type[ImageEncoder] | type[TextEncoder]] = {"image": ImageEncoder, "text": TextEncoder}


class Predictor(nn.Module):
    """Predicts hypernetworks from examples of a style.

    Args:
        scopes: The scopes of the hypernetworks.
        input_size: Channels of the model's latents, or numbers of a text.
        design: The sizes.
        kind: The kind of examples. Default: "image".
    """

    def __init__(
        self, scopes: Sequence[Scope], input_size: int, design: DesignConfig, kind: ExampleKind = "image"
    ) -> None:
        super().__init__()
        self.scopes, self.input_size, self.design = tuple(scopes), input_size, design
        self.architecture = design.architecture()
        self.keys: list[tuple[Scope, SideName]] = [(scope, side) for scope in self.scopes for side in SIDES]
        hidden = design.hidden_size
        self.encoder: StyleEncoder = ENCODERS[kind](input_size, design.style_size, hidden)
        self.embeddings = nn.Parameter(torch.randn(len(self.keys), design.embedding_size) * 0.5)
        self.trunk = nn.Sequential(
            nn.Linear(design.style_size + design.embedding_size, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
        )
        self.head = nn.Linear(hidden, design.core_size**2)
        # The hypernetworks of a new predictor change nothing.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.bases = nn.ModuleList(
            SideBases(scope.width, self.architecture.sizes(scope.width)[1], design) for scope, _ in self.keys
        )

    @property
    def kind(self) -> ExampleKind:
        """The kind of examples that it reads."""
        return self.encoder.kind

    def read(self, values: Tensor) -> Emitted:
        """Return what it emits for the values of examples, [styles, examples, ...]."""
        return self.emit(self.encoder.read(values))

    def emit(self, style: Tensor) -> Emitted:
        """Return what depends on the examples, for styles [styles, style_size]."""
        rows, sides = len(style), len(self.keys)
        styles = style.unsqueeze(1).expand(-1, sides, -1)
        hidden = self.trunk(torch.cat((styles, self.embeddings.unsqueeze(0).expand(rows, -1, -1)), -1))
        size = self.design.core_size
        return Emitted(self.head(hidden).view(rows, sides, size, size), hidden)

    def sides(self, emitted: Emitted) -> dict[tuple[Scope, SideName], PredictedSide]:
        """Return the sides of a batch, in which each row has another style."""
        return {
            key: PredictedSide(bases, emitted.cores[:, index], emitted.hidden[:, index], self.design.activation)
            for index, (key, bases) in enumerate(zip(self.keys, self.bases, strict=True))
        }

    @torch.no_grad()
    def hypernetwork(self, emitted: Emitted, name: str = "") -> Hypernetwork:
        """Return the hypernetwork of the first style, without gradients."""
        made = Hypernetwork.new(self.scopes, self.architecture, name=name)
        for (scope, side), predicted in self.sides(emitted).items():
            layers = linear_layers(made.side(scope, side))
            for layer, (weight, bias) in zip(layers, predicted.weights(), strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        return made.requires_grad_(False)


@dataclass(frozen=True)
class Emitted:
    """The values of hypernetworks that depend on the examples; all others are the same for all styles.

    Attributes:
        cores: [styles, sides, core_size, core_size].
        hidden: [styles, sides, hidden_size].
    """

    cores: Tensor
    hidden: Tensor

    def rolled(self) -> Emitted:
        """Return the values with those of the next style in the place of each."""
        return Emitted(self.cores.roll(1, 0), self.hidden.roll(1, 0))

    def mixed(self, other: Emitted, share: float) -> Emitted:
        """Return the values on the way to another: 0 gives this one, 1 the other."""
        return Emitted(self.cores.lerp(other.cores, share), self.hidden.lerp(other.hidden, share))


class SideBases(nn.Module):
    """The learned bases of the weights of one side."""

    def __init__(self, width: int, hidden: int, design: DesignConfig) -> None:
        super().__init__()
        core = design.core_size
        self.first = nn.Parameter(torch.randn(hidden, width) / width**0.5)
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.inward = nn.Parameter(torch.randn(core, hidden) / hidden**0.5)
        self.outward = nn.Parameter(torch.randn(width, core) / core**0.5)
        self.bias = nn.Parameter(torch.zeros(width, design.hidden_size))


class PredictedSide:
    """A side with other weights for each row of a batch."""

    def __init__(self, bases: nn.Module, cores: Tensor, hidden: Tensor, activation: str) -> None:
        assert isinstance(bases, SideBases)
        self._bases, self._cores = bases, cores
        self._bias = functional.linear(hidden, bases.bias)
        self._activation = None if activation == "linear" else make_activation(activation)

    def __call__(self, context: Tensor) -> Tensor:
        """Return the changed context [rows, tokens, width]."""
        bases = self._bases
        values = functional.linear(context, bases.first, bases.first_bias)
        if self._activation is not None:
            values = self._activation(values)
        values = torch.bmm(functional.linear(values, bases.inward), self._cores.transpose(1, 2))
        return context + functional.linear(values, bases.outward) + self._bias.unsqueeze(1)

    def weights(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return weight and bias of the two layers, for the first row."""
        bases = self._bases
        second = bases.outward @ self._cores[0] @ bases.inward
        return (bases.first, bases.first_bias), (second, self._bias[0])


def spread_of(emitted: Emitted) -> float:
    """Return the mean distance between the cores of examples, as a share of their mean size; 0 for one."""
    cores = emitted.cores.flatten(1)
    if len(cores) < 2:
        return 0.0
    size = cores.norm(dim=1).mean().clamp(min=1e-6)
    return float(torch.pdist(cores).mean() / size)
