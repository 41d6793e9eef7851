"""Inputs for any transformer, made from what its `forward` asks for and what its config says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

_TOKENS = 12
_FRAMES = 64
_SAMPLES = 3840  # 240 ms at 16 kHz, and a multiple of the usual frame sizes
_GRID = (1, 4, 4)  # frames, rows and columns of patches
_OPTIONAL = ("decoder_input_ids", "decoder_input_values", "bbox", "states", "actions", "rewards", "returns_to_go")
_OPTIONAL += ("timesteps", "future_values", "future_time_features")
# Given in a second round: some models cannot do without them although `forward` does not say so.
_BESIDE = ("pixel_values", "attention_mask", "input_features_mask", "encoder_hidden_states")

Maker = Callable[[PreTrainedConfig], Any]


def argument_sets(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a forward pass with a batch of one on the CPU, likely ones first.

    Made are the arguments that `forward` requires, the model's main input, and the decoder's tokens.

    Args:
        model: A model of transformers.

    Yields:
        Name of an argument -> value. An argument that nothing here knows is left out. Where one can have several
        shapes (mel bins or frames first), there is a set for each.
    """
    parameters = inspect.signature(model.forward).parameters
    wanted = [n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    main = getattr(model, "main_input_name", "input_ids")
    wanted += [name for name in ([main] if isinstance(main, str) else main) if name in parameters]
    wanted += [name for name in _OPTIONAL if name in parameters]
    makers = {name: _MAKERS[name] for name in dict.fromkeys(wanted) if name in _MAKERS}
    if {"grid_thw", "image_grid_thw"} & makers.keys():
        makers |= {name: (_patches,) for name in ("hidden_states", "pixel_values") if name in makers}
    if "spatial_shapes" in makers:
        makers["pixel_values"] = (lambda config: _patches(config)[None],)
    beside = {
        name: _MAKERS[name] for name in ("pixel_values", "attention_mask") if name in parameters.keys() - makers.keys()
    }
    for chosen in (makers, {**makers, **beside}) if "pixel_values" in beside else (makers,):
        for k in range(max((len(shapes) for shapes in chosen.values()), default=1)):
            made = {name: shapes[k % len(shapes)](model.config) for name, shapes in chosen.items()}
            if "use_cache" in parameters:
                made["use_cache"] = False
            yield made


def _find(config: PreTrainedConfig, *names: str, default: Any = None) -> Any:
    """The first of these fields in the config, or in the configs inside it."""
    for part in _configs(config):
        for name in names:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return default


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _configs(value)


def _size(config: PreTrainedConfig, *names: str, default: int) -> int:
    """A number that a config gives as such, or as a list with one for each dimension or stage."""
    value = _find(config, *names, default=default)
    return value if isinstance(value, int) else value[0]


def _tokens(config: PreTrainedConfig) -> torch.Tensor:
    tokens = torch.arange(6, 6 + _TOKENS)[None]
    end = _find(config, "eos_token_id")
    if isinstance(end, int):
        tokens[0, -1] = end  # BART's classifier reads this token
    return tokens


def _codebook_tokens(config: PreTrainedConfig) -> torch.Tensor:
    count = _find(config, "num_channels", "num_codebooks", default=8)
    return torch.ones(1, _TOKENS, count + ("num_codebooks" in vars(config)), dtype=torch.long)


def _ones(config: PreTrainedConfig) -> torch.Tensor:
    return torch.ones(1, _TOKENS, dtype=torch.long)


def _embedded(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _TOKENS, _size(config, "hidden_size", "d_model", default=64))


def _image_size(config: PreTrainedConfig) -> tuple[int, int]:
    size = _find(config, "image_size", "img_size", default=224)
    if isinstance(size, dict):
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else tuple(size)[-2:]


def _pixels(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _size(config, "num_channels", "in_channels", "in_chans", default=3), *_image_size(config))


def _video(config: PreTrainedConfig) -> torch.Tensor:
    return torch.stack([_pixels(config)] * _size(config, "num_frames", "frames_per_clip", default=4), dim=1)


def _patches(config: PreTrainedConfig) -> torch.Tensor:
    patch = _size(config, "patch_size", default=14)
    width = _size(config, "in_channels", "in_chans", "num_channels", default=3) * patch * patch
    return torch.randn(_GRID[1] * _GRID[2], width * _size(config, "temporal_patch_size", "patch_temporal", default=1))


def _patch_images(config: PreTrainedConfig) -> torch.Tensor:
    patch = _size(config, "patch_size", default=14)
    return torch.randn(_GRID[1] * _GRID[2], _size(config, "num_channels", "in_channels", default=3), patch, patch)


def _image_pair(config: PreTrainedConfig) -> torch.Tensor:
    # Grey ones would do for the models that match two images; they take the first channel.
    return torch.stack([_pixels(config)] * 2, dim=1)


def _flat_patches(config: PreTrainedConfig) -> torch.Tensor:
    places = torch.ones(1, 16, 2)
    return torch.cat([places, torch.randn(1, 16, _size(config, "patch_embed_hidden_size", default=768))], dim=-1)


def _samples(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _SAMPLES)


def _spectrogram(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _size(config, "max_length", default=_FRAMES), _mel_bins(config))


def _mel_bins(config: PreTrainedConfig) -> int:
    names = (
        "num_mel_bins",
        "input_feat_per_channel",
        "n_mels",
        "feature_size",
        "input_dim",
        "feature_projection_input_dim",
    )
    return _size(config, *names, default=128)


def _frames(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _FRAMES, _mel_bins(config))


def _bins_first(frames: int) -> Maker:
    return lambda config: torch.randn(1, _mel_bins(config), frames)


def _whisper_frames(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _mel_bins(config), 2 * _size(config, "max_source_positions", default=1500))


def _latents(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _size(config, "hidden_size", "latent_channels", default=64), _TOKENS)


def _length(config: PreTrainedConfig) -> int:
    lags = _find(config, "lags_sequence", default=[0])
    return _size(config, "context_length", "prediction_length", default=64) + max(lags)


def _series(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randn(1, _length(config), _size(config, "num_input_channels", default=1))


def _time_features(length: Callable[[PreTrainedConfig], int]) -> Maker:
    # Two more than asked for: the age and the scale of the series count as features too.
    return lambda config: torch.randn(1, length(config), _size(config, "num_time_features", default=0))


def _ahead(config: PreTrainedConfig) -> int:
    return _size(config, "prediction_length", default=4)


def _steps(width: str) -> Maker:
    return lambda config: torch.randn(1, _TOKENS, _size(config, width, default=1))


_MAKERS: dict[str, tuple[Maker, ...]] = {
    "input_ids": (_tokens, _codebook_tokens, _tokens),
    "decoder_input_ids": (_tokens, _codebook_tokens, _codebook_tokens),
    "decoder_input_values": (lambda config: torch.randn(1, _TOKENS, _mel_bins(config)), *[_embedded] * 3),
    "inputs_embeds": (_embedded,),
    "query_embeds": (_embedded,),
    "noise_embeds": (_embedded,),
    "context_hidden_states": (_embedded,),
    "hidden_states": (_embedded,),
    "attention_mask": (_ones,),
    "bbox": (
        lambda config: torch.tensor([1, 2, 3, 4]).repeat(1, _TOKENS, 1),
        lambda config: torch.rand(1, _TOKENS, 8),
        lambda config: torch.rand(1, _TOKENS, 4),
    ),
    "pixel_values": (_pixels, _video, _image_pair),
    "prompt_pixel_values": (_pixels,),
    "prompt_masks": (_pixels,),
    "encoder_hidden_states": (
        lambda config: torch.randn(1, _TOKENS, _size(config, "encoder_hidden_size", "hidden_size", default=64)),
    ),
    "pixel_values_videos": (_video,),
    "pixel_attention_mask": (lambda config: torch.ones(1, _GRID[1] * _GRID[2], dtype=torch.long),),
    "pixel_position_ids": (lambda config: torch.ones(1, _GRID[1] * _GRID[2], 2, dtype=torch.long),),
    "spatial_shapes": (lambda config: torch.tensor([_GRID[1:]]),),
    "grid_thw": (lambda config: torch.tensor([_GRID]),),
    "image_grid_thw": (lambda config: torch.tensor([_GRID]),),
    "merge_sizes": (lambda config: torch.tensor([2]),),
    "bool_masked_pos": (lambda config: torch.arange(1568)[None] % 2 == 0,),
    "flattened_patches": (_flat_patches,),
    "input_values": (_samples, lambda config: _samples(config)[None], _spectrogram, _embedded),
    "input_features": (_frames, _bins_first(_FRAMES), _whisper_frames, _bins_first(3000)),
    "input_features_mask": (
        lambda config: torch.ones(1, _FRAMES, dtype=torch.long),
        lambda config: torch.ones(1, _FRAMES, dtype=torch.long),
        lambda config: torch.ones(1, 3000, dtype=torch.long),
        lambda config: torch.ones(1, 3000, dtype=torch.long),
    ),
    "audio_mel": (_frames,),
    "audio_mel_mask": (lambda config: torch.zeros(1, _FRAMES, dtype=torch.bool),),
    "latents": (_latents,),
    "inputs": (lambda config: torch.randn(1, _TOKENS, _size(config, "d_model", default=64)), _tokens, _pixels),
    "past_values": (_series, lambda config: _series(config)[..., 0]),
    "past_values_padding": (lambda config: torch.zeros(1, _length(config), dtype=torch.long),),
    "past_time_features": (_time_features(_length),),
    "past_observed_mask": (lambda config: torch.ones(1, _length(config)),),
    "future_values": (lambda config: torch.randn(1, _ahead(config), 1), lambda config: torch.randn(1, _ahead(config))),
    "future_time_features": (_time_features(_ahead),),
    "freq": (lambda config: torch.zeros(1, 1, dtype=torch.long),),
    "states": (_steps("state_dim"),),
    "actions": (_steps("act_dim"),),
    "rewards": (_steps(""),),
    "returns_to_go": (_steps(""),),
    "timesteps": (lambda config: torch.arange(_TOKENS)[None],),
}
