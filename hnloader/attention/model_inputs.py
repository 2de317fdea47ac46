"""Read what a model receives in a call: the shapes, and the dtype and device of the contexts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Inputs", "decoder_inputs", "token_positions", "unet_inputs"]


class Inputs(NamedTuple):
    """Inputs of a call of a model.

    Attributes:
        device: Device of the contexts.
        dtype: Dtype of the contexts.
        shape: [batch, channels, height, width] of latents, or [batch, tokens] of a language model.
        text: Shape of a UNet's text, None without one.
    """

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]
    text: tuple[int, ...] | None = None


def unet_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs | None:
    """Return what a UNet receives; None if it is unknown."""
    sample = args[0] if args else kwargs.get("sample", kwargs.get("x"))
    if not isinstance(sample, Tensor):
        return None
    text = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states", kwargs.get("context"))
    return Inputs(sample.device, sample.dtype, sample.shape, text.shape if isinstance(text, Tensor) else None)


def token_positions(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the positions of the tokens in a call of a decoder: [rows, tokens], one row if all are alike.

    They count the tokens of a row, without padding.
    """
    if len(args) > 1:
        kwargs = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    ids, mask, past = (kwargs.get(name) for name in ("position_ids", "attention_mask", "past_key_values"))
    found = decoder_inputs(model, args, kwargs)
    assert found is not None, "a decoder receives tokens"
    count = found.shape[1]
    if isinstance(ids, Tensor):
        return ids.reshape(-1, *ids.shape[-2:])[0]  # some models have three positions for each token
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1)[:, -count:]
    before = 0
    if past is not None:
        before = past.get_seq_length() if hasattr(past, "get_seq_length") else past[0][0].shape[-2]
    return torch.arange(before, before + count, device=found.device)[None]


def decoder_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs | None:
    """Return what a decoder receives; None if it is unknown."""
    given = [args[0] if args else kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    found = next((each for each in given if isinstance(each, Tensor)), None)
    if found is None:
        return None
    if found.is_floating_point():
        return Inputs(found.device, found.dtype, found.shape[:2])
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return Inputs(found.device, next(dtypes, torch.float32), found.shape[:2])
