# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""The video processor: from any kind of video to pixels, whole or a chunk at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_videos import decode_everything, on_screen_at, pictures, prepare
from transformers import AutoVideoProcessor
from transformers.video_utils import VideoMetadata

from llama_vid.data.clips import write_clip
from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling.video_processing_llama_vid import flatten_videos

SIZE = 28


@pytest.fixture
def processor() -> LlamaVidVideoProcessor:
    return LlamaVidVideoProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Four seconds at 25 frames a second, H.264 with B-frames."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path, pictures(100), fps=25, b_frames=2)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Two seconds of another size."""
    path = tmp_path_factory.mktemp("clips") / "other.mp4"
    write_clip(path, pictures(20, height=80, width=48), fps=10)
    return path


def array(count: int = 6) -> np.ndarray:
    return np.stack(list(pictures(count)))


def test_pixels_are_those_of_the_frames_on_screen(processor, clip):
    pts, frames, time_base = decode_everything(clip)
    expected = torch.stack([prepare(frames[on_screen_at(second, pts, time_base)], SIZE) for second in range(4)])
    batch = processor(clip, return_metadata=True)
    assert batch["pixel_values_videos"].dtype == torch.float32
    torch.testing.assert_close(batch["pixel_values_videos"], expected, atol=1e-5, rtol=0)
    assert batch["video_num_frames"].tolist() == [4]
    assert batch["video_metadata"][0].timestamps == pytest.approx([0, 1, 2, 3])


def test_videos_of_different_lengths_and_sizes(processor, clip, other):
    batch = processor([clip, [str(other)]])
    assert batch["video_num_frames"].tolist() == [4, 2]
    assert batch["pixel_values_videos"].shape == (6, 3, SIZE, SIZE)
    torch.testing.assert_close(batch["pixel_values_videos"][4:], processor(other)["pixel_values_videos"])


def test_bytes_paths_and_strings_give_the_same(processor, clip):
    expected = processor(clip)["pixel_values_videos"]
    for video in (str(clip), clip.read_bytes()):
        assert torch.equal(processor(video)["pixel_values_videos"], expected)


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_chunks_are_the_whole(processor, clip, chunk_size):
    batch = processor(clip, fps=2.5, return_metadata=True)
    chunks = list(processor.iter_chunks(clip, fps=2.5, chunk_size=chunk_size))
    assert [len(pixels) for pixels, _ in chunks[:-1]] == [chunk_size] * (len(chunks) - 1)
    assert torch.equal(torch.cat([pixels for pixels, _ in chunks]), batch["pixel_values_videos"])
    times = torch.cat([times for _, times in chunks])
    assert times.dtype == torch.float64
    assert times.tolist() == batch["video_metadata"][0].timestamps


def test_chunks_are_made_when_they_are_asked_for(processor, clip, monkeypatch):
    resized = []
    resize = LlamaVidVideoProcessor.resize
    monkeypatch.setattr(
        LlamaVidVideoProcessor,
        "resize",
        lambda self, image, **kwargs: resized.append(1) or resize(self, image, **kwargs),
    )
    chunks = processor.iter_chunks(clip, fps=5, chunk_size=4)
    assert not resized
    next(chunks)
    assert len(resized) == 4
    chunks.close()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, 4),
        ({"fps": 2}, 8),
        ({"fps": 0.5}, 2),
        ({"num_frames": 3}, 3),
        ({"num_frames": 100}, 100),
        ({"fps": 5, "max_frames": 7}, 7),
        ({"max_frames": 2}, 2),
        ({"do_sample_frames": False}, 100),
    ],
)
def test_sampling_options(processor, clip, sampling, expected):
    assert processor(clip, **sampling)["video_num_frames"].tolist() == [expected]


def test_options_of_a_call_override_stored_ones(clip):
    stored = LlamaVidVideoProcessor(num_frames=3)
    assert stored(clip)["video_num_frames"].tolist() == [3]
    assert stored(clip, fps=1)["video_num_frames"].tolist() == [4]


def test_frames_in_memory(processor):
    frames = array()
    expected = torch.stack([prepare(frame, SIZE) for frame in frames])
    images = [Image.fromarray(frame) for frame in frames]
    for video in (frames, torch.from_numpy(frames), frames.transpose(0, 3, 1, 2), images, list(frames)):
        pixels = processor(video)["pixel_values_videos"]
        torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_frames_in_memory_are_sampled_where_they_have_a_clock(processor):
    frames = array(100)
    batch = processor(frames, video_metadata={"fps": 25, "total_num_frames": 100}, return_metadata=True)
    assert batch["video_num_frames"].tolist() == [4]
    assert batch["video_metadata"][0].frames_indices == [0, 25, 50, 75]
    assert batch["video_metadata"][0].timestamps == pytest.approx([0, 1, 2, 3])
    same = processor(frames, video_metadata=[VideoMetadata(total_num_frames=100, fps=25)])
    assert torch.equal(same["pixel_values_videos"], batch["pixel_values_videos"])
    assert processor(frames)["video_num_frames"].tolist() == [100]
    assert processor(frames, num_frames=10)["video_num_frames"].tolist() == [10]
    assert processor(frames, max_frames=10)["video_num_frames"].tolist() == [10]


def test_grey_and_alpha_frames(processor):
    grey = array()[..., :1]
    pixels = processor(grey)["pixel_values_videos"]
    torch.testing.assert_close(pixels, processor(np.repeat(grey, 3, axis=-1))["pixel_values_videos"])
    alpha = np.concatenate([array(), np.full_like(grey, 255)], axis=-1)
    assert processor(alpha)["pixel_values_videos"].shape == (6, 3, SIZE, SIZE)


def test_flatten_videos(clip):
    frames = array(3)
    images = [Image.fromarray(frame) for frame in frames]
    assert flatten_videos(str(clip)) == [str(clip)]
    assert flatten_videos([[clip], [], [str(clip), b"film"]]) == [clip, str(clip), b"film"]
    assert flatten_videos(images) == [images]
    assert flatten_videos([images, images]) == [images, images]
    assert len(flatten_videos(frames[None].repeat(2, axis=0))) == 2
    assert len(flatten_videos([frames, frames, [frames]])) == 3


def test_saved_and_loaded(processor, clip, tmp_path):
    processor.fps, processor.max_frames = 2.0, 5
    processor.save_pretrained(tmp_path)
    loaded = AutoVideoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, LlamaVidVideoProcessor)
    assert json.loads(loaded.to_json_string()) == json.loads(processor.to_json_string())
    assert torch.equal(loaded(clip)["pixel_values_videos"], processor(clip)["pixel_values_videos"])
    assert loaded(clip)["video_num_frames"].tolist() == [5]
    assert (tmp_path / "video_processing_llama_vid.py").is_file()


BAD_INPUTS = {
    "no video": (lambda: [], {}, "No video was passed"),
    "no frames": (lambda: np.zeros((0, 8, 8, 3), np.uint8), {}, "no frames or no pixels"),
    "empty bytes": (lambda: b"", {}, "is empty"),
    "one frame": (lambda: array(1)[0], {}, "A single frame is no video"),
    "NaN": (
        lambda: np.where(np.arange(6)[:, None, None, None] == 4, np.nan, array() / 1.0),
        {},
        "Frame 4 of video 0 has NaN",
    ),
    "two channels": (lambda: array()[..., :2], {}, "no axis of 1, 3 or 4 channels"),
    "fps and num_frames": (array, {"fps": 1, "num_frames": 2}, "mutually exclusive"),
    "fps of zero": (array, {"fps": 0}, "fps must be a positive number"),
    "num_frames of zero": (array, {"num_frames": 0}, "num_frames must be a whole number of at least 1"),
    "max_frames of zero": (array, {"max_frames": 0}, "max_frames must be a whole number of at least 1"),
    "more frames than there are": (array, {"num_frames": 7}, "num_frames=7 exceeds the 6 frames"),
    "metadata of another number": (array, {"video_metadata": [{"fps": 1}] * 2}, "2 entries for 1 videos"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(processor, name):
    video, options, message = BAD_INPUTS[name]
    with pytest.raises(ValueError, match=message):
        processor(video(), **options)


def test_what_is_no_video_at_all(processor):
    with pytest.raises(TypeError, match="A video must be a path"):
        processor([3])


def test_chunks_are_at_least_one_frame(processor, clip):
    with pytest.raises(ValueError, match="chunk_size must be a whole number of at least 1, got 0"):
        processor.iter_chunks(clip, chunk_size=0)
    with pytest.raises(ValueError, match="one video at a time, got 2"):
        processor.iter_chunks([clip, clip])
