# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""LLaMA-VID video processor: files, URLs and frames in memory to sampled, resized and normalized frames."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from transformers import BatchFeature
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import is_valid_video_frame

from .video_decoding_llama_vid import Clip, LlamaVidVideoMetadata, open_file
from .video_frame_files_llama_vid import FrameFiles, is_frame_files
from .video_frames_llama_vid import open_frames
from .video_sampling_llama_vid import check_sampling

SAMPLING_SETTINGS = ("fps", "num_frames", "max_frames", "start", "end", "keyframes_only")


class LlamaVidVideosKwargs(VideosKwargs, total=False):
    """
    transformers' arguments of a video processor, and:

    max_frames (`int`, *optional*):
        Upper limit of frames from one video; if sampling wants more, they are thinned evenly, with a warning.
    start (`float`, *optional*):
        Seconds after the video's first frame at which sampling begins; the instants count from there, times do not.
    end (`float`, *optional*):
        Seconds after the video's first frame at which sampling ends.
    keyframes_only (`bool`, *optional*):
        Instead of each wanted frame of a file the last keyframe until then: much faster, approximate, with a warning.
    video_backend (`str`, *optional*):
        Who decodes files: `"pyav"`, or `"torchcodec"` if it is installed and finds FFmpeg's libraries.
    on_error (`str`, *optional*):
        What becomes of a file that is damaged or cut off: `"raise"`, or `"keep"` the frames before that place.
    """

    max_frames: int | None
    start: float | int | None
    end: float | int | None
    keyframes_only: bool | None
    video_backend: str | None
    on_error: str | None


@dataclass
class LlamaVidVideoChunks:
    """
    One opened video, to be read once.

    Args:
        metadata (`LlamaVidVideoMetadata`): What is known of it beforehand; `times` is not yet.
        num_frames (`int`): Frames that will come; fewer come only of a damaged file with `on_error="keep"`.
        chunks (`Iterator[tuple[torch.Tensor, torch.Tensor]]`): (pixels, times) as `iter_chunks` yields them.
    """

    metadata: LlamaVidVideoMetadata
    num_frames: int
    chunks: Iterator[tuple[torch.Tensor, torch.Tensor]]


class LlamaVidVideoProcessor(BaseVideoProcessor):
    r"""
    Samples the frames of videos (one a second by default, the frame on screen at each whole second), resizes their
    shortest edge, crops the centre and normalizes them. Files are decoded by PyAV as a stream: only the wanted frames
    are converted to RGB, each is resized at once (bicubic with antialiasing, on uint8), and no more than a chunk is
    ever held by [`~LlamaVidVideoProcessor.open`], the one path that also `iter_chunks` and `preprocess` take.

    A video is a path, an http(s) URL, bytes, a 4D array (frames, channels, height, width) or (frames, height, width,
    channels), or a list of PIL images or 3D arrays. It may also be a folder or an uncompressed .tar of JPEG, PNG or
    WebP frames, which are taken in the natural order of their names, read one at a time and only if they are chosen;
    what is said of frames in memory holds for them. For frames in memory `do_rescale` and `do_normalize` apply to the
    values as they are, as in transformers: uint8 or floats from 0 to 255 by default; pass `do_rescale=False` for
    floats from 0 to 1.

    Args:
        fps (`float`, *optional*, defaults to 1.0): Frames a second, see `choose_frames`. Frames in memory have a clock
            only if `video_metadata` says their `fps`, or their `times` (a list of seconds, counted from the first one);
            without it every frame is kept, they are taken to be 1 / fps seconds apart, and asking for `fps` in a call
            is an error.
        num_frames (`int`, *optional*): Frames in all instead; if both are stored, this one counts. An argument of a
            call overrides whatever is stored; both in one call are an error.
        max_frames (`int`, *optional*): Upper limit of frames from one video, thinned evenly.
        do_sample_frames (`bool`, *optional*, defaults to `True`): `False` keeps every frame, whatever the three say.
        start, end (`float`, *optional*): The part to sample, in seconds after the first frame. Times stay those of the
            whole video. Frames in memory need `video_metadata` with their `fps` or `times` for it.
        keyframes_only (`bool`, *optional*, defaults to `False`): For very long files: looks at the last keyframe until
            each sampling instant, at its own time, which may be seconds earlier. Frames in memory are all keyframes.
        video_backend (`str`, *optional*, defaults to `"pyav"`): Who decodes files. `"torchcodec"`, where it is
            installed and finds FFmpeg's libraries, which it does not bring along, gives the same frames: bit for bit
            of 8-bit progressive video, with other chroma of 10 bits or interlaced video. Files whose frames it does
            not find by their times (AVI, raw streams, MPEG-TS that starts late) are errors.
        on_error (`str`, *optional*, defaults to `"raise"`): `"keep"` takes what comes before the place where a file is
            damaged or cut off, with a warning; a file of which nothing can be read is an error all the same.
        size (`dict`, *optional*, defaults to `{"shortest_edge": 224}`): Size to resize to.
        crop_size (`dict`, *optional*, defaults to 224 x 224): What is cropped from the centre.

    The other arguments are transformers' (`VideosKwargs`); `video_metadata` of a file is not looked at, as its
    container knows better.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    fps = 1.0
    num_frames = None
    max_frames = None
    start = None
    end = None
    keyframes_only = False
    video_backend = "pyav"
    on_error = "raise"
    valid_kwargs = LlamaVidVideosKwargs
    model_input_names = ["pixel_values_videos", "video_num_frames"]

    def __init__(self, **kwargs: Unpack[LlamaVidVideosKwargs]) -> None:
        super().__init__(**kwargs)
        check_sampling(self.fps, self.num_frames, self.max_frames, self.start, self.end)

    def preprocess(self, videos: Any, **kwargs: Unpack[LlamaVidVideosKwargs]) -> BatchFeature:
        """
        Sample, resize, crop and normalize videos; they may differ in length and size.

        Args:
            videos: One video or (nested) lists of them, see the class.
            kwargs: Any argument of the class, for this call. `video_metadata` (a dict or `VideoMetadata`, one a video)
                gives the `fps` or `times` of frames in memory. `return_metadata=True` adds `video_metadata` to the
                output.

        Returns:
            `BatchFeature`:

            - **pixel_values_videos** (`torch.FloatTensor` of shape `(total_frames, 3, height, width)`): The frames of
              all videos, one after another.
            - **video_num_frames** (`torch.LongTensor` of shape `(num_videos,)`): Frames of each video.
            - **video_metadata** (`list[LlamaVidVideoMetadata]`): If asked for; `timestamps` are the kept frames' times
              in seconds after the first frame.

        Raises:
            FileNotFoundError: A file does not exist.
            ValueError: A video that cannot be read to its end, changes meanwhile or has frames of an absurd size; an
                `fps` that asks for absurdly many; arguments that make no sense; NaN in an array.
            TypeError: Something that is no video.
        """
        settings = self._settings(kwargs)
        videos = flatten_videos(videos)
        given = flatten_metadata(kwargs.get("video_metadata"), len(videos))

        with ExitStack() as opened:
            clips = [
                opened.enter_context(self._open(video, f"video {index}", given[index], settings))
                for index, video in enumerate(videos)
            ]
            pixels = self._read(clips, settings)
        counts = [len(clip.metadata.times) for clip in clips]
        data = {"pixel_values_videos": pixels, "video_num_frames": torch.tensor(counts)}
        batch = BatchFeature(data, tensor_type=settings["return_tensors"])
        if settings["return_metadata"]:
            batch["video_metadata"] = [clip.metadata for clip in clips]
        return batch

    def iter_chunks(
        self, video: Any, *, chunk_size: int = 64, **kwargs: Unpack[LlamaVidVideosKwargs]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """
        The frames that `preprocess` would return, a chunk at a time: memory does not depend on the video's length.

        Args:
            video: One video, see the class.
            chunk_size (`int`, *optional*, defaults to 64): Frames in a chunk; the last one may have fewer.
            kwargs: As for `preprocess` (`fps`, `num_frames`, `max_frames` …).

        Yields:
            `tuple[torch.Tensor, torch.Tensor]`: pixels, float32 of shape `(n, 3, height, width)`, and times, float64 of
            shape `(n,)`: seconds after the first frame of the video.

        Raises:
            As `preprocess`; what concerns the file when the first chunk is asked for, a failure of decoding later.
        """
        opened = self.open(video, chunk_size=chunk_size, **kwargs)

        def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            with opened as reader:
                yield from reader.chunks

        return chunks()

    def open(
        self, video: Any, *, chunk_size: int = 64, **kwargs: Unpack[LlamaVidVideosKwargs]
    ) -> AbstractContextManager[LlamaVidVideoChunks]:
        """
        As `iter_chunks`, for who has to know beforehand how many frames will come, or how long the video is.

        Example:

        ```python
        >>> with video_processor.open("film.mkv") as reader:
        ...     features = torch.empty(reader.num_frames, rows, width)
        ...     for pixels, times in reader.chunks:
        ...         ...
        ```

        Args:
            video: One video, see the class.
            chunk_size (`int`, *optional*, defaults to 64): Frames in a chunk; the last one may have fewer.
            kwargs: As for `preprocess`.

        Returns:
            A context manager that gives a `LlamaVidVideoChunks` and closes the file when it is left.

        Raises:
            As `preprocess`; what concerns the file when the context is entered, a failure of decoding later.
        """
        if not (isinstance(chunk_size, int) and chunk_size >= 1):
            raise ValueError(f"chunk_size must be a whole number of at least 1, got {chunk_size!r}.")
        settings = self._settings(kwargs)
        videos = flatten_videos(video)
        if len(videos) != 1:
            raise ValueError(f"One video is read at a time, got {len(videos)}.")
        given = flatten_metadata(kwargs.get("video_metadata"), 1)[0]

        @contextmanager
        def opened() -> Iterator[LlamaVidVideoChunks]:
            with self._open(videos[0], "the video", given, settings) as clip:
                chunks = self._chunks(clip, chunk_size, settings)
                yield LlamaVidVideoChunks(clip.metadata, len(clip.metadata.frames_indices), chunks)

        return opened()

    def sampling_settings(self, **kwargs: Unpack[LlamaVidVideosKwargs]) -> dict[str, Any]:
        """
        What decides which frames of a video are looked at: `SAMPLING_SETTINGS`, of a call's arguments and the stored
        ones. Raises ValueError as the call would.
        """
        settings = self._settings(kwargs)
        return {key: settings[key] for key in SAMPLING_SETTINGS} | {"video_metadata": kwargs.get("video_metadata")}

    def _settings(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument, as given in this call or as stored; at most one of `fps` and `num_frames` is not None."""
        fps, num_frames = kwargs.get("fps"), kwargs.get("num_frames")
        check_sampling(fps, num_frames, kwargs.get("max_frames"), kwargs.get("start"), kwargs.get("end"))
        if fps is not None and num_frames is not None:
            raise ValueError(f"fps={fps} and num_frames={num_frames} are mutually exclusive. Pass one of them.")
        validate_typed_dict(self.valid_kwargs, kwargs)
        settings = {key: getattr(self, key) for key in self.valid_kwargs.__annotations__}
        settings |= {key: value for key, value in kwargs.items() if value is not None}
        settings["fps_asked_for"] = settings["do_sample_frames"] and fps is not None
        if not settings["do_sample_frames"]:
            settings |= {"fps": None, "num_frames": None, "max_frames": None}
        elif fps is not None:
            settings["num_frames"] = None
        elif settings["num_frames"] is not None:
            settings["fps"] = None
        size = get_size_dict(settings["size"], default_to_square=settings["default_to_square"])
        crop_size = get_size_dict(settings["crop_size"], param_name="crop_size")
        for key in ("image_mean", "image_std"):
            if isinstance(settings[key], list):
                settings[key] = tuple(settings[key])  # transformers caches what it computes from them
        return settings | {"size": SizeDict(**size), "crop_size": SizeDict(**crop_size)}

    def _open(
        self, video: Any, name: str, given: Mapping[str, Any] | None, settings: dict[str, Any]
    ) -> AbstractContextManager[Clip]:
        rule = {key: settings[key] for key in ("fps", "num_frames", "max_frames", "start", "end")}
        prepare = partial(self._resize_and_crop, settings=settings)
        kind = "frames in memory"
        if is_frame_files(video):
            video, name, kind = FrameFiles(video), str(video), "image files"
        elif isinstance(video, str | os.PathLike | bytes):
            options = {key: settings[key] for key in ("keyframes_only", "video_backend", "on_error")}
            return open_file(video, rule, prepare=prepare, **options)
        given = dict(given or {})  # transformers' class has no `times`, and raises AttributeError for it
        has_clock = given.get("fps") is not None or given.get("times") is not None
        if settings["fps_asked_for"] and not has_clock:
            raise ValueError(
                f"fps={rule['fps']} was asked for, but {name} is {kind}, whose rate is unknown. Pass "
                'video_metadata={"fps": …} or {"times": […]}, or leave fps out: then every frame is kept.'
            )
        if (rule["start"], rule["end"]) != (None, None) and not has_clock:
            raise ValueError(
                f"start={rule['start']} and end={rule['end']} are seconds, but {name} is {kind}, whose rate is unknown."
                ' Pass video_metadata={"fps": …} or {"times": […]}, or leave out the other frames.'
            )
        do_convert_rgb, input_data_format = settings["do_convert_rgb"], settings["input_data_format"]
        return nullcontext(open_frames(video, rule, name, given, self.fps, do_convert_rgb, input_data_format, prepare))

    def _read(self, clips: list[Clip], settings: dict[str, Any]) -> torch.Tensor:
        """The frames of all clips, one after another; their metadata then say which ones came, and when."""
        total = sum(len(clip.metadata.frames_indices) for clip in clips)
        pixels, count = None, 0
        for clip in clips:
            clip.metadata.times = []
            for chunk, times in self._chunks(clip, chunk_size=64, settings=settings):
                if pixels is None:  # written into place: joining chunks would hold all frames twice
                    pixels = chunk.new_empty(total, *chunk.shape[1:])
                if chunk.shape[1:] != pixels.shape[1:]:
                    sizes = sorted(tuple(frames.shape[-2:]) for frames in (pixels, chunk))
                    raise ValueError(f"Frames of one batch must have one size, got {sizes}: use do_center_crop=True.")
                pixels[count : count + len(chunk)] = chunk
                count += len(chunk)
                clip.metadata.times += times.tolist()
                del chunk  # or it would stay while the next one is made
            # A damaged file gives fewer.
            clip.metadata.frames_indices = clip.metadata.frames_indices[: len(clip.metadata.times)]
        return pixels[:count]

    def _chunks(
        self, clip: Clip, chunk_size: int, settings: dict[str, Any]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        frames, times = [], []
        for image, seconds in clip.frames:
            frames.append(image)
            times.append(seconds)
            if len(frames) == chunk_size:
                yield self._rescale_and_normalize(frames, settings), torch.tensor(times, dtype=torch.float64)
                frames, times = [], []
        if frames:
            yield self._rescale_and_normalize(frames, settings), torch.tensor(times, dtype=torch.float64)

    def _resize_and_crop(self, image: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
        image = image.to(settings["device"])
        if settings["do_resize"]:
            image = self.resize(image, size=settings["size"], resample=settings["resample"])
        if settings["do_center_crop"]:
            image = self.center_crop(image, settings["crop_size"])
        return image.contiguous()  # a crop is a view, which would keep the whole frame

    def _rescale_and_normalize(self, frames: list[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
        keys = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        return self.rescale_and_normalize(torch.stack(frames), **{key: settings[key] for key in keys}).float()


def flatten_videos(videos: Any) -> list:
    """
    One video, or (nested) lists of them, as a flat list of single videos.

    A single video is a path (`str` or `pathlib.Path`), an http(s) URL, `bytes` of a file, a 4D array, or a list of
    frames (PIL images or 3D arrays). A 5D array is several. Empty lists between others (samples of a batch that have
    no video) are skipped.

    Args:
        videos: One video, or lists of videos.

    Returns:
        `list`: Single videos, in order.

    Raises:
        ValueError: Nothing in it, an array without frames, or a single frame instead of a list.
        TypeError: Something that is no video.
    """
    flat = _flatten(videos)
    if not flat:
        raise ValueError("No video was passed: videos is empty. Leave it out if there is none.")
    return flat


def _flatten(videos: Any) -> list:
    if isinstance(videos, str | os.PathLike | bytes):
        return [videos]
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim in (4, 5):
        if 0 in videos.shape:
            raise ValueError(f"A video has no frames or no pixels: its shape is {tuple(videos.shape)}.")
        return [videos] if videos.ndim == 4 else list(videos)
    if isinstance(videos, list | tuple):
        if videos and all(is_valid_video_frame(frame) for frame in videos):
            return [list(videos)]
        return [video for item in videos for video in _flatten(item)]
    if is_valid_video_frame(videos):
        raise ValueError("A single frame is no video: pass the frames of each video as a list, or as a 4D array.")
    kind = type(videos).__name__
    if isinstance(videos, np.ndarray | torch.Tensor):
        kind += f" of shape {tuple(videos.shape)}"
    raise TypeError(
        "A video must be a path, an http(s) URL, bytes, a 4D array or a list of frames (PIL images or 3D arrays), got "
        f"{kind}."
    )


def flatten_metadata(metadata: Any, count: int) -> list[Mapping[str, Any] | None]:
    """transformers' `video_metadata` (one, or nested lists of them) as a list, one a video. Raises ValueError."""
    if metadata is None:
        return [None] * count
    flat = [metadata]
    while any(isinstance(item, list | tuple) for item in flat):
        flat = [entry for item in flat for entry in (item if isinstance(item, list | tuple) else [item])]
    if len(flat) != count:
        raise ValueError(f"video_metadata has {len(flat)} entries for {count} videos. Pass one for each video.")
    return flat
