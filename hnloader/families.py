"""Families of Stable Diffusion models: one `Family` holds all that hnloader knows about each.

A width is the last dimension of the context that `to_k` and `to_v` of an attention layer receive. In cross-attention it
is the size of the text encoder's output, which differs between families. In self-attention it is the layer's number of
channels, which the families share. So the text width decides; a file without one may fit several families.

`register` adds a family. Inspection, attaching, conversion to LoRA, the library page and messages ask the registered
families. A checkpoint of a new family is recognized by the family's `checkpoint_prefix`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hnloader.scopes import ScopeLike, as_scope
from hnloader.texts import shown

__all__ = [
    "Family",
    "all_families",
    "embedding_family",
    "families_of",
    "family_list",
    "family_named",
    "family_of_model",
    "made_for",
    "register",
    "vector_widths",
]

# Layer names of diffusers' UNets. Temporal attention (`motion_modules`, `temp_attentions`) and the gated layers of
# GLIGEN (`fuser.attn`) do not match, because hypernetworks are not trained on them.
_UNET_LAYERS = (
    r"(?:(?P<section>down|up)_blocks\.(?P<number>\d+)|mid_block)"
    r"\.attentions\.\d+\.transformer_blocks\.\d+\.attn[12]"
)


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        name: Name that users see, such as `SD 1`.
        text_width: Width of the cross-attention layers.
        self_widths: Widths of the self-attention layers.
        encoder_widths: Width of each text encoder. An embedding is for the family if its vectors have these widths in
            this order, or only that of the second encoder. Default: one encoder of `text_width`.
        resolution: Side of the square images that the models are trained on, in pixels.
        pipeline: Name of the diffusers pipeline that loads a single-file checkpoint.
        checkpoint_prefix: Start of tensor names that only checkpoints of this family hold. Default: `""`, none: such
            checkpoints are loaded as those of the first family, SD 1.
        unet: Settings of diffusers' `UNet2DConditionModel` that differ from its defaults.
        attention_layers: Regular expression for the full names of the attention layers. The group `section` is `down`
            or `up` and the group `number` is the block's index; both are missing in the mid block.
        lora_names: Layer names in LoRA files: those of diffusers or of the original checkpoints.
        lora_base: Value of kohya's `ss_base_model_version`.
        modelspec: ModelSpec's name of the architecture.
        modelspec_lora: The same for LoRA files. Default: `modelspec`.
        takes_hypernetworks: False for models that hypernetworks are not made for. They are only recognized.

    Example:
        >>> from hnloader.families import family_named
        >>> family = family_named("SDXL")
        >>> family.text_width, family.resolution, family.lora_names
        (2048, 1024, 'original')
    """

    name: str
    text_width: int
    self_widths: frozenset[int]
    encoder_widths: tuple[int, ...] = ()
    resolution: int = 512
    pipeline: str = "StableDiffusionPipeline"
    checkpoint_prefix: str = ""
    unet: Mapping[str, object] = field(default_factory=dict)
    attention_layers: str = _UNET_LAYERS
    lora_names: Literal["diffusers", "original"] = "diffusers"
    lora_base: str = ""
    modelspec: str = "stable-diffusion"
    modelspec_lora: str = ""
    takes_hypernetworks: bool = True

    def unet_config(self) -> dict[str, object]:
        """Return a configuration from which diffusers builds the family's UNet.

        Returns:
            Arguments of `UNet2DConditionModel.from_config`.

        Example:
            >>> from hnloader.families import family_named
            >>> family_named("SD 1").unet_config()["cross_attention_dim"]
            768
        """
        return {
            "_class_name": "UNet2DConditionModel",
            "layers_per_block": 2,  # diffusers 0.31 does not use its default
            "cross_attention_dim": self.text_width,
            "sample_size": self.resolution // 8,
            **self.unet,
        }


# The first one is the fallback: checkpoints without the prefix of another family are loaded as its own.
_families = [
    Family(
        name="SD 1",
        text_width=768,
        self_widths=frozenset({320, 640, 1280}),
        unet={"attention_head_dim": 8},
        lora_base="sd_v1",
        modelspec="stable-diffusion-v1",
    ),
    Family(
        name="SD 2",
        text_width=1024,
        self_widths=frozenset({320, 640, 1280}),
        resolution=768,
        unet={"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        lora_base="sd_v2",
        modelspec="stable-diffusion-v2",
        modelspec_lora="stable-diffusion-v2-768-v",
    ),
    Family(
        name="SDXL",
        text_width=2048,
        self_widths=frozenset({640, 1280}),
        encoder_widths=(768, 1280),
        resolution=1024,
        pipeline="StableDiffusionXLPipeline",
        checkpoint_prefix="conditioner.embedders.1.",
        unet={
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        lora_names="original",
        lora_base="sdxl_base_v1-0",
        modelspec="stable-diffusion-xl-v1-base",
    ),
    # Its self-attention width 768 is also the text width of SD 1.
    Family("SDXL refiner", 1280, frozenset({768, 1536}), resolution=1024, takes_hypernetworks=False),
]


def register(family: Family) -> None:
    """Add a family of models.

    Args:
        family: The family. Its name and its text width must be new.

    Raises:
        ValueError: Another family has this name or this text width.

    Example:
        >>> from hnloader.families import family_named, register
        >>> register(family_named("SD 1"))
        Traceback (most recent call last):
        ValueError: Family 'SD 1': the name or the text width 768 is taken. Choose others.
    """
    if any(family.name == each.name or family.text_width == each.text_width for each in _families):
        raise ValueError(
            f"Family {shown(family.name)}: the name or the text width {family.text_width} is taken. Choose others."
        )
    _families.append(family)


def all_families() -> tuple[Family, ...]:
    """Return the families that hypernetworks are made for.

    Returns:
        The families, in the order in which they are listed for users.

    Example:
        >>> from hnloader.families import all_families
        >>> [family.name for family in all_families()]
        ['SD 1', 'SD 2', 'SDXL']
    """
    return tuple(family for family in _families if family.takes_hypernetworks)


def family_list() -> str:
    """Return the names of the families that hypernetworks are made for, as text for messages.

    Returns:
        The names with commas and an "or".

    Example:
        >>> from hnloader.families import family_list
        >>> family_list()
        'SD 1, SD 2 or SDXL'
    """
    *names, last = (family.name for family in all_families())
    return f"{', '.join(names)} or {last}"


def vector_widths() -> frozenset[int]:
    """Return the widths of all families' text encoders and of their joined output.

    Returns:
        The widths.

    Example:
        >>> from hnloader.families import vector_widths
        >>> sorted(vector_widths())
        [768, 1024, 1280, 2048]
    """
    return frozenset(width for family in _families for width in (family.text_width, *family.encoder_widths))


def family_named(name: str | None) -> Family | None:
    """Return the family of this name.

    Args:
        name: Name of a family.

    Returns:
        The family, or None for any other name.

    Example:
        >>> from hnloader.families import family_named
        >>> family_named("SD 2").text_width
        1024
    """
    return next((family for family in _families if family.name == name), None)


def families_of(scopes: Iterable[ScopeLike]) -> tuple[str, ...]:
    """Return the names of the families that a hypernetwork with these widths is made for.

    A text width names its family, whatever else the file holds. Without one, all families with these widths count.

    Args:
        scopes: Widths or scopes in the file.

    Returns:
        Names in the order of `all_families`. Empty if no family has these widths.

    Example:
        >>> from hnloader.families import families_of
        >>> families_of([320, 640, 768, 1280])
        ('SD 1',)
        >>> families_of([640, 1280])
        ('SD 1', 'SD 2', 'SDXL')
    """
    held = [as_scope(scope) for scope in scopes]
    text = {scope.width for scope in held if scope.kind != "self"}
    by_text = tuple(family.name for family in all_families() if family.text_width in text)
    if by_text or not held or any(scope.kind == "cross" for scope in held):
        return by_text
    own = {scope.width for scope in held}
    return tuple(family.name for family in all_families() if own <= family.self_widths)


def made_for(scopes: Iterable[ScopeLike]) -> tuple[str, ...]:
    """Return the models that a hypernetwork with these widths is made for, in words.

    A file of one width for self-attention alone is for language models, unless a family has that width.

    Args:
        scopes: Widths or scopes in the file.

    Returns:
        Names of families, or a name for language models. Empty for unknown models.

    Example:
        >>> from hnloader.families import made_for
        >>> made_for(["576:self"]), made_for([768, 320]), made_for([99])
        (('language models of width 576',), ('SD 1',), ())
    """
    held = [as_scope(scope) for scope in scopes]
    found = families_of(held)
    widths = {scope.width for scope in held}
    if not found and len(widths) == 1 and all(scope.kind == "self" for scope in held):
        return (f"language models of width {widths.pop()}",)
    return found


def family_of_model(text_widths: Iterable[int], self_widths: Iterable[int]) -> Family | None:
    """Return the family of a model from the widths of its attention layers.

    Args:
        text_widths: Widths of its cross-attention layers.
        self_widths: Widths of its self-attention layers.

    Returns:
        The family, or None for a model of an unknown family, such as a small one for tests.

    Example:
        >>> from hnloader.families import family_of_model
        >>> family_of_model([768], [320, 640, 1280]).name
        'SD 1'
    """
    text, own = frozenset(text_widths), frozenset(self_widths)
    return next((each for each in _families if text == {each.text_width} and own <= each.self_widths), None)


def embedding_family(widths: Sequence[int]) -> str | None:
    """Return the name of the family that a textual-inversion embedding is made for.

    Args:
        widths: Width of the vectors for each text encoder, in the order of `Family.encoder_widths`.

    Returns:
        Name of the family whose encoders have these widths. `NAME, second encoder only` if the width is that of a
        second encoder alone. None if no family has such encoders.

    Example:
        >>> from hnloader.families import embedding_family
        >>> embedding_family([768]), embedding_family([768, 1280]), embedding_family([1280])
        ('SD 1', 'SDXL', 'SDXL, second encoder only')
    """
    given = tuple(widths)
    for family in all_families():
        if given == (family.encoder_widths or (family.text_width,)):
            return family.name
    for family in all_families():
        if len(given) == 1 and given == family.encoder_widths[1:]:
            return f"{family.name}, second encoder only"
    return None
