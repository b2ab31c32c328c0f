# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""What the visual encoder gave for a video: in memory, or in a safetensors file that is read a chunk at a time."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig
from transformers.video_processing_utils import BaseVideoProcessor

from .subtitles_llama_vid import Clock

FEATURES_FORMAT = "llama_vid_video_features"
FEATURES_VERSION = "1"
FEATURES_DTYPES = {"float16": "F16", "bfloat16": "BF16", "int8": "I8"}  # ours to safetensors' names

# What becomes of a frame, and so of its features; which frames are looked at is another matter.
PIXEL_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_convert_rgb",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)

# What decides a vision tower's output beside its weights. A list of our own: other fields come and go with versions.
_ENCODER_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
)


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """A video as `encode_frames` returned it, (num_frames, rows, vision_hidden_size), and its clock if it has one."""

    features: torch.Tensor
    clock: Clock | None = None

    def __post_init__(self):
        is_tensor = isinstance(self.features, torch.Tensor)
        if not is_tensor or self.features.ndim != 3 or 0 in self.features.shape:
            given = tuple(self.features.shape) if is_tensor else type(self.features).__name__
            raise ValueError(
                "`video_features` must hold what `encode_frames` returned for each video, tensors of shape "
                f"(num_frames, rows, vision_hidden_size) or files of them, got {given}."
            )

    @classmethod
    def with_times(cls, features: torch.Tensor, times: Iterable[float] | None, name: str) -> "EncodedVideo":
        """With the seconds at which each frame is shown. Raises ValueError if they are not that, naming the video."""
        clock = None if times is None else Clock.of_times(times)
        video = cls(features, clock)
        if clock is None:
            return video
        ascending = all(earlier <= later for earlier, later in pairwise(clock.times))
        if len(clock.times) != len(features) or not ascending or not all(map(math.isfinite, clock.times)):
            raise ValueError(
                f"{name} has {len(features)} frames of features and the `video_times` {clock.times}: pass the seconds "
                "at which each frame is shown, ascending."
            )
        return video


class VideoFeatures:
    """
    The features of a video in a file that `llama_vid.extract_features` wrote: opened by mapping it into memory, so that
    only the frames that are asked for are read.

    The file is safetensors: `features` (frames, kept rows, C) in float16, bfloat16 or int8, `times` (frames,) in
    float64, for int8 `scales` (frames, kept rows) in float32; where rows were pooled to a grid, they are given back
    once for each patch of their cell, so that the model sees as many rows as its encoder has.

    Args:
        path (`str` or `PathLike`): The file.

    Attributes:
        shape (`tuple[int, int, int]`): (frames, rows, C) as the model takes them.
        times (`torch.Tensor` of shape `(frames,)`, float64): Seconds after the first frame of the video.
        duration (`float`): Seconds from the first frame to the end of the video.
        dtype (`str`): How the file keeps numbers: `float16`, `bfloat16` or `int8`.
        grid_size (`int`, *optional*): k if k x k pooled patches of a frame are kept, `None` for all of them.
        source (`dict`): `name`, `size` in bytes and `sha256` of the video file.
        encoder (`str`): The vision tower's fingerprint, see `encoder_fingerprint`.
        settings (`dict`): How frames were sampled (`SAMPLING_SETTINGS`) and made (`PIXEL_SETTINGS`).

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is damaged, or no file of features.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"Features file {self.path} does not exist: make it with `llama-vid features`.")
        try:
            self._file = safe_open(self.path, framework="pt", device="cpu")
            self.metadata = self._file.metadata() or {}
            found = (self.metadata.get("format"), self.metadata.get("version"))
            if found != (FEATURES_FORMAT, FEATURES_VERSION):
                raise ValueError(f"its format and version are {found}, not {(FEATURES_FORMAT, FEATURES_VERSION)}")
            self.source: dict[str, Any] = json.loads(self.metadata["source"])
            self.encoder = self.metadata["encoder"]
            self.settings: dict[str, Any] = json.loads(self.metadata["settings"])
            self.dtype = self.metadata["dtype"]
            self.grid_size: int | None = json.loads(self.metadata["grid_size"])
            self.duration = float(self.metadata["duration"])
            self._side = int(self.metadata["patch_grid_side"])
            self._check_metadata()
            self._features = self._file.get_slice("features")
            self._scales = self._file.get_slice("scales") if self.dtype == "int8" else None
            self.times = self._file.get_tensor("times")
            self._check_tensors()
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.path} is damaged or no file of video features ({error}): extract them again."
            ) from error

    def _check_metadata(self) -> None:
        if not (isinstance(self.source, dict) and self.source.keys() >= {"name", "size", "sha256"}):
            raise ValueError(f"its source is {self.source!r}")
        if not isinstance(self.settings, dict):
            raise ValueError(f"its settings are {self.settings!r}")
        sides = [self._side, 1 if self.grid_size is None else self.grid_size]
        if not all(type(side) is int and side >= 1 for side in sides):
            raise ValueError(f"its patch_grid_side and grid_size are {self._side!r} and {self.grid_size!r}")

    def _check_tensors(self) -> None:
        frames, kept, width = self._features.get_shape()
        patches = (self.grid_size or self._side) ** 2
        fits = (
            self._features.get_dtype() == FEATURES_DTYPES[self.dtype]
            and kept - patches in (0, 1)
            and frames >= 1
            and self._side % (self.grid_size or 1) == 0
            and (self.times.dtype, self.times.shape) == (torch.float64, (frames,))
            and (self._scales is None or self._scales.get_shape() == [frames, kept])
        )
        if not fits:
            raise ValueError(f"its tensors contradict its metadata: features are {(frames, kept, width)}")
        self._num_cls = kept - patches
        self.shape = (frames, self._num_cls + self._side**2, width)

    @property
    def num_frames(self) -> int:
        """Frames in the file."""
        return self.shape[0]

    @property
    def clock(self) -> Clock:
        """When its frames are shown, and the part of the video that was sampled."""
        return Clock.of_part(self.times.tolist(), self.duration, self.settings.get("start"), self.settings.get("end"))

    @property
    def rows(self) -> int:
        """Rows of a frame as the model takes them: its patches, and CLS first where the encoder has one."""
        return self.shape[1]

    def chunk(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """
        Some frames, read from the file now.

        Args:
            start (`int`): The first one.
            stop (`int`): The one after the last; beyond the end means up to the end.
            dtype (`torch.dtype`): What to return.

        Returns:
            `torch.Tensor` of shape `(n, rows, C)`: what `encode_frames` gave, up to the file's rounding.

        Raises:
            ValueError: No frame lies between `start` and `stop`.
        """
        if not 0 <= start < min(stop, self.num_frames):
            raise ValueError(f"start={start} and stop={stop} hold none of the {self.num_frames} frames of {self.path}.")
        features = self._features[start:stop]  # (n, kept, C)
        if self._scales is not None:
            features = features.float() * self._scales[start:stop].unsqueeze(-1)
        return self._all_rows(features.to(dtype))

    def load(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """
        All frames, (num_frames, rows, C): what `chunk` returns. As they are stored they stay in the file, mapped into
        memory, of which the system takes back what is not being read; otherwise they are put together in place.
        """
        if self.grid_size is None and dtype == getattr(torch, self.dtype):
            return self._file.get_tensor("features")
        features = torch.empty(self.shape, dtype=dtype)
        for start in range(0, self.num_frames, 64):
            features[start : start + 64] = self.chunk(start, start + 64, dtype)
        return features

    def _all_rows(self, features: torch.Tensor) -> torch.Tensor:
        """Each pooled row once for every patch of its cell."""
        if self.grid_size is None:
            return features
        times = self._side // self.grid_size
        grid = features[:, self._num_cls :].unflatten(1, (self.grid_size, self.grid_size))  # (n, k, k, C)
        patches = grid.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2).flatten(1, 2)
        return torch.cat([features[:, : self._num_cls], patches], dim=1)

    def check(self, encoder: str | None = None, settings: Mapping[str, Any] | None = None) -> None:
        """
        Make sure that the features are what a checkpoint's own encoder would give.

        Args:
            encoder (`str`, *optional*): The checkpoint's `encoder_fingerprint`.
            settings (`Mapping`, *optional*): What must agree with the file's `settings`, such as `pixel_settings` of
                the checkpoint's video processor; only its keys are compared.

        Raises:
            ValueError: They differ; the message names both sides.
        """
        if encoder is not None and encoder != self.encoder:
            raise ValueError(
                f"{self.path} holds features of the vision tower {self.encoder[:16]}…, this checkpoint's is "
                f"{encoder[:16]}…: extract them again with this checkpoint, or use the one they were made with."
            )
        settings = json.loads(json.dumps(dict(settings or {})))
        missing = object()
        differing = [key for key, value in settings.items() if self.settings.get(key, missing) != value]
        if differing:
            raise ValueError(
                f"{self.path} was made with { {key: self.settings.get(key) for key in differing} }, this checkpoint's "
                f"processor says { {key: settings[key] for key in differing} }: extract the features again with it."
            )


def encoder_fingerprint(vision_tower: nn.Module, config: PreTrainedConfig) -> str:
    """
    What tells vision towers apart: SHA-256 over names, shapes, types and bytes of the weights, in a stream, and over
    the configuration's fields that change the output. Neither the device nor `frames_per_chunk` matters. A tower loaded
    in another dtype is another encoder.

    Args:
        vision_tower (`nn.Module`): `vision_tower` of [`LlamaVidModel`], in whole: not sharded, not offloaded to disk.
        config (`PreTrainedConfig`): The [`LlamaVidConfig`] beside it.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        ValueError: A weight has no data (it lies on the meta device).
    """
    fields = config.vision_config.to_dict()
    described = {key: fields[key] for key in _ENCODER_FIELDS if key in fields} | {"layers": config.vision_num_layers}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(vision_tower.state_dict().items()):
        if tensor.is_meta:
            raise ValueError(
                f"`vision_tower.{name}` has no data here (it is on the meta device): load the tower whole."
            )
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pixel_settings(video_processor: BaseVideoProcessor) -> dict[str, Any]:
    """The video processor's stored settings that decide a frame's pixels (`PIXEL_SETTINGS`), fit for JSON."""
    stored = video_processor.to_dict()
    return json.loads(json.dumps({key: stored.get(key) for key in PIXEL_SETTINGS}))


__all__ = ["EncodedVideo", "VideoFeatures", "encoder_fingerprint", "pixel_settings"]
