"""Features of many videos, extracted once: what the visual encoder gives, in one file a video."""

import hashlib
import json
import logging
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import AutoVideoProcessor

from llama_vid.checkpoint_check import check_architecture
from llama_vid.modeling import LlamaVidConfig, LlamaVidVideoProcessor
from llama_vid.modeling.modeling_llama_vid_visual import LlamaVidVisualModel
from llama_vid.modeling.video_features_llama_vid import (
    FEATURES_DTYPES,
    FEATURES_FORMAT,
    FEATURES_VERSION,
    VideoFeatures,
    encoder_fingerprint,
    pixel_settings,
)
from llama_vid.modeling.video_frame_files_llama_vid import FrameFiles, is_frame_files
from llama_vid.modeling.video_processing_llama_vid import LlamaVidVideoChunks
from llama_vid.modeling.video_sources_llama_vid import is_url, local_source, source_name

logger = logging.getLogger(__name__)

# Names have 255 bytes on most file systems.
MAX_STEM_BYTES = 220

# Two videos that differ in one of these have different files; the other metadata follow from them.
_MUST_AGREE = ("encoder", "settings", "dtype", "grid_size")


@dataclass
class ExtractionReport:
    """
    What became of each video.

    Args:
        files (`dict[str, Path]`): Each video, as it was passed, and its file; without those that failed.
        written (`list[Path]`): The files that this call wrote.
        skipped (`list[Path]`): Those that were there already, or that another process wrote meanwhile.
        errors (`dict[str, str]`): Each video that failed, and why.
        num_frames (`int`): Frames that were encoded.
        seconds (`float`): Wall time, without loading the model.
    """

    files: dict[str, Path] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    num_frames: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.num_frames / self.seconds if self.seconds else 0.0
        return (
            f"{len(self.written)} videos extracted, {len(self.skipped)} there already, {len(self.errors)} failed; "
            f"{self.num_frames} frames in {self.seconds:.1f} s ({rate:.1f} a second)"
        )


def extract_features(
    videos: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    model: str | os.PathLike,
    fps: float | None = None,
    num_frames: int | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    keyframes_only: bool | None = None,
    video_metadata: dict[str, Any] | None = None,
    dtype: str = "float16",
    grid_size: int | None = None,
    chunk_size: int = 64,
    overwrite: bool = False,
    on_error: str = "raise",
) -> ExtractionReport:
    """
    Run the visual encoder over videos and keep what it gives, one file a video, for [`VideoFeatures`] to read.

    At 224 px the default encoder gives 257 rows of 1408 numbers: 0.72 MB a frame in 16 bits, 2.6 GB for an hour at one
    frame a second, half of that as int8, and 0.18 MB a frame (0.66 GB an hour) with `grid_size=8`. Features go to disk
    a chunk at a time, so memory does not depend on the video's length. Only the vision tower of the checkpoint is
    loaded.

    A video's file is `<stem>.safetensors`; videos of one call whose stems are equal get 8 digits of a hash of their
    absolute path or URL too (`film-1a2b3c4d.safetensors`, see `feature_paths`). A file that holds the same video,
    encoder, settings, dtype and grid is left as it is. Of another encoder, with other settings, or damaged: it is made
    again, with a warning. Of another video: an error, as it would be lost.

    An extraction that was killed is run again: what is done is skipped, and files come out as if nothing had happened.
    Several processes may share a folder: each video is locked (in `.locks/`) while one of them works on it, and the
    operating system frees the locks of a process that dies. Under `accelerate launch` the videos are shared out; each
    process returns a report on its own part.

    Args:
        videos (`str`, `PathLike` or a sequence of them): Paths (of files, or of folders and .tar files of frames) or
            http(s) URLs. The latter are downloaded each time, as only their content tells whether they are done.
        output (`str` or `PathLike`): The folder for the files; it is created.
        model (`str` or `PathLike`): A checkpoint's folder or Hub id.
        fps (`float`, *optional*): Frames a second; the checkpoint's sampling (1 a second) by default.
        num_frames (`int`, *optional*): Frames in all instead of `fps`.
        max_frames (`int`, *optional*): Thin evenly where that gives more.
        start, end (`float`, *optional*): The part to sample, in seconds after the first frame.
        keyframes_only (`bool`, *optional*): Fast and approximate, see [`LlamaVidVideoProcessor`].
        video_metadata (`dict`, *optional*): The clock of folders and .tar files of frames, all of them: their `fps`, or
            their `times` in seconds.
        dtype (`str`, *optional*, defaults to `"float16"`): `float16`, `bfloat16`, or `int8` with a scale for each row.
        grid_size (`int`, *optional*): Keep CLS and k x k averages of neighbouring patches instead of every patch. Mean
            pooling to 1, or to a grid that divides k, gives the same content tokens; context tokens change.
        chunk_size (`int`, *optional*, defaults to 64): Frames that are decoded and encoded at a time.
        overwrite (`bool`, *optional*, defaults to `False`): Make all files again, whatever is there.
        on_error (`str`, *optional*, defaults to `"raise"`):
            What videos that cannot be read do in the end, after all others: `raise`, or `skip` (see the report).

    Returns:
        `ExtractionReport`

    Raises:
        ValueError: Arguments that make no sense, a checkpoint of another architecture; videos that failed, all of them
            by name, unless `on_error="skip"`.
        OSError: A file that cannot be written, at once.
    """
    videos = [videos] if isinstance(videos, str | os.PathLike) else list(videos)
    if dtype not in FEATURES_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(FEATURES_DTYPES)}, got {dtype!r}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}.')
    if not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(f"chunk_size must be a whole number of at least 1, got {chunk_size!r}.")
    targets = feature_paths(videos, output)
    check_architecture(model)
    video_processor = AutoVideoProcessor.from_pretrained(model)
    sampling = {"fps": fps, "num_frames": num_frames, "max_frames": max_frames, "start": start, "end": end}
    sampling |= {"keyframes_only": keyframes_only, "video_metadata": video_metadata}
    settings = pixel_settings(video_processor) | video_processor.sampling_settings(**sampling)

    with _own_share(list(targets)) as (share, device):
        tower = _load_vision_tower(model, device)
        _check_fits(tower.config, grid_size)
        metadata = {
            "format": FEATURES_FORMAT,
            "version": FEATURES_VERSION,
            "encoder": encoder_fingerprint(tower.vision_tower, tower.config),
            "settings": json.dumps(settings, sort_keys=True, default=lambda times: np.asarray(times).tolist()),
            "dtype": dtype,
            "grid_size": json.dumps(grid_size),
            "patch_grid_side": str(tower.config.patch_grid_side),
        }
        extractor = _Extractor(tower, video_processor, sampling, metadata, chunk_size, overwrite)
        report = extractor.run({video: targets[video] for video in share})
    if report.errors and on_error == "raise":
        failures = "\n".join(f"- {source_name(video)}: {reason}" for video, reason in report.errors.items())
        raise ValueError(
            f"{len(report.errors)} of {len(share)} videos failed, the features of the others are in {output}. Repair "
            f'or leave out these, or pass on_error="skip":\n{failures}'
        )
    return report


def feature_paths(videos: Sequence[str | os.PathLike], output: str | os.PathLike) -> dict[str, Path]:
    """
    Where `extract_features` writes each video, by the video as it was passed.

    Args:
        videos (`Sequence`): Paths or http(s) URLs; one that is passed twice counts once.
        output (`str` or `PathLike`): The folder.

    Returns:
        `dict[str, Path]`: For each video `<stem>.safetensors`, or `<stem>-<hash>.safetensors` where stems are equal.

    Raises:
        ValueError: No video.
        TypeError: Something that is neither a path nor a URL.
    """
    for video in videos:
        if not isinstance(video, str | os.PathLike):
            raise TypeError(
                f"videos must be paths or http(s) URLs, got {type(video).__name__}: write it to a file first."
            )
    names = list(dict.fromkeys(os.fspath(video) for video in videos))
    if not names:
        raise ValueError("videos is empty: pass at least one path or URL.")
    stems = {name: features_stem(name) for name in names}
    count = Counter(stem.lower() for stem in stems.values())  # some file systems do not tell Film from film

    return {
        name: Path(output) / features_name(stem, name, is_alone=count[stem.lower()] == 1)
        for name, stem in stems.items()
    }


def features_stem(name: str) -> str:
    """What the files of a video's features begin with: its name without the last ending, of a URL that of its path."""
    return Path(_file_name(name)).stem


def features_name(stem: str, place: str, *, is_alone: bool) -> str:
    """
    The name of a video's file of features: its stem, and a hash of its place where others have the same stem, it has
    what no text or no name can hold, or is too long for file systems with what stands beside it while it is written.
    """
    text = stem.encode(errors="ignore").replace(b"\0", b"")
    if stem and is_alone and text == stem.encode(errors="replace") and len(text) <= MAX_STEM_BYTES:
        return f"{stem}.safetensors"
    place = place if is_url(place) else os.path.abspath(place)
    digest = hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()
    return f"{text[: MAX_STEM_BYTES - 9].decode(errors='ignore') or 'video'}-{digest[:8]}.safetensors"


def _file_name(video: str) -> str:
    """The last part of a path, or of that of a URL; of one that is none, nothing."""
    if not is_url(video):
        return Path(video).name
    try:
        return PurePosixPath(unquote(urlsplit(video).path)).name
    except ValueError:
        return ""


class _OutputError(OSError):
    """A file of features that cannot be written."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of the system within are those of writing this file."""
    try:
        yield
    except OSError as error:
        raise _OutputError(f"{path} cannot be written ({error}): make room, or choose another folder.") from error


class _Extractor:
    """What stays the same from video to video."""

    def __init__(
        self,
        tower: "_VisionTower",
        video_processor: LlamaVidVideoProcessor,
        sampling: dict[str, Any],
        metadata: dict[str, str],
        chunk_size: int,
        overwrite: bool,
    ) -> None:
        self.tower = tower
        self.video_processor = video_processor
        self.sampling = sampling
        self.metadata = metadata
        self.chunk_size = chunk_size
        self.overwrite = overwrite

    def run(self, targets: dict[str, Path]) -> ExtractionReport:
        """All videos; those that another process is at come last, when it has finished or died."""
        report, start, busy = ExtractionReport(), time.perf_counter(), {}
        with tqdm(unit=" frames") as progress:
            for number, (video, path) in enumerate([*targets.items()], start=1):
                progress.set_description(f"{number}/{len(targets)} {path.stem}")
                if not self._try_one(video, path, report, progress, wait=False):
                    busy[video] = path
            for video, path in busy.items():
                progress.set_description(f"waiting for {path.stem}")
                self._try_one(video, path, report, progress, wait=True)
        report.seconds = time.perf_counter() - start
        return report

    def _try_one(self, video: str, path: Path, report: ExtractionReport, progress: tqdm, wait: bool) -> bool:
        """One video under its lock; False if another process holds it."""
        locks = path.parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{path.name}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0, poll_interval=0.5)
        except Timeout:
            return False
        try:
            # What was waited for has just been made anew, whatever `overwrite` says.
            if frames := self._extract(video, path, progress, overwrite=self.overwrite and not wait):
                report.written.append(path)
                report.num_frames += frames
            else:
                report.skipped.append(path)
            report.files[video] = path
        except _OutputError:  # no fault of the video, and the others would end in it too
            raise
        except (ValueError, OSError) as error:
            report.errors[video] = str(error)
            logger.warning("%s failed: %s", source_name(video), error)
        finally:
            lock.release()
        return True

    def _extract(self, video: str, path: Path, progress: tqdm, overwrite: bool) -> int:
        """Write one video's features; the number of its frames, 0 if they are there already."""
        with nullcontext(video) if is_frame_files(video) else local_source(video) as source:
            before = _state(source)
            name = _file_name(video).encode(errors="replace").decode()
            fingerprint = {"name": name, "size": sum(size for _, size, _ in before), "sha256": _sha256(source)}
            metadata = self.metadata | {"source": json.dumps(fingerprint)}
            if not overwrite and self._is_done(path, metadata):
                return 0
            partial = path.with_name(f".{path.name}.partial")  # the lock's holder is the only one who writes it
            try:
                reading = self.video_processor.open(source, **self.sampling, chunk_size=self.chunk_size)
                with reading as reader, _writing(path), open(partial, "wb") as file:
                    frames = _write(file, self._encoded(reader, metadata, progress), metadata)
                    file.flush()
                    os.fsync(file.fileno())
                if before != _state(source):
                    raise ValueError(
                        f"{source_name(video)} changed while it was read: extract it again when it is complete."
                    )
                with _writing(path):
                    os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return frames

    def _is_done(self, path: Path, metadata: dict[str, str]) -> bool:
        """Whether the file holds what would be written. Raises ValueError if it holds another video."""
        if not path.exists():
            return False
        try:
            stored = VideoFeatures(path)
        except ValueError as error:
            logger.warning("%s Doing so now.", error)
            return False
        if stored.source["sha256"] != json.loads(metadata["source"])["sha256"]:
            raise ValueError(
                f"{path} holds the features of another video, or of an older state of this one "
                f"({stored.source['name']}, {stored.source['size']} bytes): choose another folder, or pass "
                "overwrite=True to replace it."
            )
        # Of settings what they say, in which 1 and 1.0 are the same.
        is_as_set = stored.settings == json.loads(metadata["settings"])
        agrees = {key: stored.metadata[key] == metadata[key] for key in _MUST_AGREE} | {"settings": is_as_set}
        changed = [key for key in _MUST_AGREE if not agrees[key]]
        if changed:
            were = "; ".join(f"{key}: {stored.metadata[key]} there, {metadata[key]} now" for key in changed)
            logger.warning("%s is made again, because it is of another %s (%s).", path, " and ".join(changed), were)
        return not changed

    def _encoded(
        self, reader: LlamaVidVideoChunks, metadata: dict[str, str], progress: tqdm
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
        """
        (rows as they are stored, their scales, times) of a chunk at a time, on the CPU; in the end the metadata has the
        `duration`, which of a damaged file is how far it could be read. Whatever is wrong with reading is a ValueError:
        OSErrors are those of writing.
        """
        try:
            for pixels, times in reader.chunks:
                yield *self._encode(pixels), times
                progress.update(len(times))
        except OSError as error:
            raise ValueError(str(error)) from error
        metadata["duration"] = repr(reader.metadata.duration)

    def _encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A function of its own, so that the features in full precision are gone when the next chunk is decoded."""
        with torch.inference_mode():
            features = self.tower.encode_frames(pixels.to(self.tower.device))
            features = _pool(features, json.loads(self.metadata["grid_size"]), self.tower.config.patch_grid_side)
            rows, scales = to_stored_dtype(features, self.metadata["dtype"])
        return rows.cpu(), None if scales is None else scales.cpu()


def to_stored_dtype(features: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Features as they are stored.

    Args:
        features (`torch.Tensor` of shape `(frames, rows, C)`): What `encode_frames` gave.
        dtype (`str`): `float16`, `bfloat16`, or `int8`: symmetric, with the largest magnitude of each row at 127.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: the stored numbers, and for int8 the scales, float32 of shape
        `(frames, rows)`; numbers times scales are the features, half a scale off at most.

    Raises:
        ValueError: NaN or infinite values, or values beyond what float16 holds.
    """
    scales = None
    if dtype == "int8":
        # The floor keeps rows of zeros from a division by zero.
        scales = features.float().abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        stored = (features.float() / scales.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
    else:
        stored = features.to(getattr(torch, dtype))
    # Numbers times scales are read as half precision.
    if not (stored if scales is None else (scales * 127).to(torch.float16)).isfinite().all():
        raise ValueError(
            f"The vision tower gave values that {dtype} cannot hold (up to {features.abs().max():.3g}): use "
            "dtype='bfloat16', and a checkpoint that computes in float32 or bfloat16."
        )
    return stored, scales


def _pool(features: torch.Tensor, grid_size: int | None, side: int) -> torch.Tensor:
    """CLS and the averages of k x k cells of patches, (frames, kept rows, C); None leaves every patch."""
    if grid_size is None:
        return features
    num_cls = features.shape[1] - side**2
    cells = features[:, num_cls:].float().unflatten(1, (grid_size, side // grid_size, grid_size, side // grid_size))
    return torch.cat([features[:, :num_cls].float(), cells.mean((2, 4)).flatten(1, 2)], dim=1)


def _write(file: BinaryIO, chunks: Iterator[tuple], metadata: dict[str, str]) -> int:
    """
    Write a safetensors file as the chunks come, and return the number of its frames.

    The format begins with the tensors' shapes, which are known at the end: room is left for them, of a size that only
    depends on the metadata, and until they are there the file is not valid. The format allows no gaps, and readers
    want each number at a multiple of its size: the largest tensor goes first, as its width is a multiple of 8.
    """
    reserved = -(-(len(json.dumps(metadata)) + 1024) // 4096) * 4096
    file.write(bytes(reserved))
    all_times, all_scales, frames, kept = [], [], 0, None
    for rows, scales, times in chunks:
        file.write(_bytes_of(rows))
        frames, kept = frames + len(rows), tuple(rows.shape[1:])
        all_times.append(times)
        if scales is not None:
            all_scales.append(scales)
        del rows  # written: it would stay while the next chunk is encoded
    tensors = {"times": ("F64", torch.cat(all_times))}
    if all_scales:
        tensors["scales"] = ("F32", torch.cat(all_scales))

    end = file.tell() - reserved
    dtype = FEATURES_DTYPES[metadata["dtype"]]
    header = {
        "__metadata__": metadata,
        "features": {"dtype": dtype, "shape": [frames, *kept], "data_offsets": [0, end]},
    }
    for name, (dtype, tensor) in tensors.items():
        start, end = end, end + file.write(_bytes_of(tensor))
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    file.seek(0)
    file.write(struct.pack("<Q", reserved - 8) + json.dumps(header).encode().ljust(reserved - 8))
    return frames


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _files(source: str) -> list[str]:
    """The file of a video or .tar, or those of a folder of frames."""
    return [frame.path for frame in FrameFiles(source).frames] if os.path.isdir(source) else [source]


def _state(source: str) -> list[tuple[str, int, int]]:
    """What tells that a video changes while it is read: each file's path, size and time of writing."""
    stats = [(path, os.stat(path)) for path in _files(source)]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _sha256(source: str) -> str:
    """Of a file's content, or of the names and contents of a folder's frames."""
    digests = []
    for path in _files(source):
        with open(path, "rb") as file:
            digests.append((os.path.basename(path), hashlib.file_digest(file, "sha256").hexdigest()))
    if not os.path.isdir(source):
        return digests[0][1]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


class _VisionTower(LlamaVidVisualModel):
    """The model without its language model, which would fill the memory for nothing."""

    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?language_model\.", r"^lm_head\."]

    def __init__(self, config: LlamaVidConfig) -> None:
        super().__init__(config)
        self.post_init()


def _load_vision_tower(model: str | os.PathLike, device: torch.device) -> _VisionTower:
    tower, loading = _VisionTower.from_pretrained(model, output_loading_info=True)
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in loading[problem] if "vision_tower" in str(name)):
            raise ValueError(
                f"The checkpoint `{model}` has {len(names)} {problem.replace('_', ' ')} in its vision tower "
                f"({', '.join(names[:5])} …): it is incomplete or not one of this model; download or convert it again."
            )
    return tower.eval().to(device)


def _check_fits(config: LlamaVidConfig, grid_size: int | None) -> None:
    side, width = config.patch_grid_side, config.vision_config.hidden_size
    if grid_size is not None and not (isinstance(grid_size, int) and grid_size >= 1 and side % grid_size == 0):
        possible = [k for k in range(1, side + 1) if side % k == 0]
        raise ValueError(
            f"grid_size={grid_size!r} does not divide the {side} x {side} patches of a frame; possible: {possible}, or "
            "None for every patch."
        )
    if width % 8:
        raise ValueError(f"The vision tower's width must be a multiple of 8 for a features file, got {width}.")


@contextmanager
def _own_share(videos: list[str]) -> Iterator[tuple[list[str], torch.device]]:
    """This process's part of the videos and its device; all of them, unless launched as one of several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield videos, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return
    from accelerate import PartialState

    # Nobody leaves early, or the launcher would end the others; an hour of film more or less is no reason to give up.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))
    with state.split_between_processes(videos) as share:
        yield share, state.device
    state.wait_for_everyone()
