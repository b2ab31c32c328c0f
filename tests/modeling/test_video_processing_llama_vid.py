# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Videos of every accepted form to pixels, frame counts and times."""

import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from small_videos import decode_everything, on_screen_at, pictures, prepare
from transformers import AutoVideoProcessor
from transformers.video_utils import VideoMetadata

from llama_vid.data.clips import write_clip
from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling import video_decoding_llama_vid as decoding
from llama_vid.modeling.video_processing_llama_vid import flatten_videos

SIZE = 28


@pytest.fixture
def processor() -> LlamaVidVideoProcessor:
    """As it is by default, for small frames."""
    return LlamaVidVideoProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four seconds at 25 frames a second, 64 x 48."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", pictures(100))


@pytest.fixture(scope="module")
def tall_clip(tmp_path_factory):
    """Two and a half seconds at 10 frames a second, 36 x 60."""
    return write_clip(tmp_path_factory.mktemp("clips") / "tall.mkv", pictures(25, height=60, width=36), fps=10)


def stack(count: int) -> np.ndarray:
    return np.stack(list(pictures(count)))


# What comes out.


def test_pixels_counts_and_times(processor, clip):
    pts, decoded, time_base = decode_everything(clip)
    output = processor(clip, return_metadata=True)

    assert set(output) == {"pixel_values_videos", "video_num_frames", "video_metadata"}
    assert output["pixel_values_videos"].shape == (4, 3, SIZE, SIZE)
    assert output["pixel_values_videos"].dtype == torch.float32
    assert output["video_num_frames"].dtype == torch.int64
    assert output["video_num_frames"].tolist() == [4]
    expected = [prepare(decoded[on_screen_at(second, pts, time_base)], SIZE) for second in range(4)]
    torch.testing.assert_close(output["pixel_values_videos"], torch.stack(expected), atol=1e-5, rtol=0)

    (metadata,) = output["video_metadata"]
    assert isinstance(metadata, VideoMetadata)
    assert metadata.timestamps == [0, 1, 2, 3]
    assert metadata.frames_indices == [0, 25, 50, 75]
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (100, 25, 4)
    assert (metadata.width, metadata.height) == (64, 48)


def test_without_metadata_it_is_left_out(processor, clip):
    assert set(processor(clip)) == {"pixel_values_videos", "video_num_frames"}


def test_videos_of_different_lengths_and_sizes(processor, clip, tall_clip):
    together = processor([clip, [str(tall_clip), list(pictures(2))], []], return_metadata=True)
    assert together["video_num_frames"].tolist() == [4, 3, 2]
    assert [metadata.timestamps for metadata in together["video_metadata"]] == [[0, 1, 2, 3], [0, 1, 2], [0, 1]]
    alone = [processor(video)["pixel_values_videos"] for video in (clip, tall_clip, list(pictures(2)))]
    assert torch.equal(together["pixel_values_videos"], torch.cat(alone))


def test_times_of_a_variable_frame_rate(processor, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(5), times=[10, 10.4, 11.1, 12.7, 13], fps=2)
    (metadata,) = processor(path, return_metadata=True)["video_metadata"]
    assert metadata.timestamps == pytest.approx([0, 0.4, 1.1, 3.0])


def test_numpy_output(processor, clip):
    output = processor(clip, return_tensors="np")
    assert isinstance(output["pixel_values_videos"], np.ndarray)
    assert isinstance(processor(clip, return_tensors="pt")["pixel_values_videos"], torch.Tensor)


# Arguments.


def test_defaults():
    processor = LlamaVidVideoProcessor()
    assert (processor.fps, processor.num_frames, processor.max_frames) == (1.0, None, None)
    assert dict(processor.size) == {"shortest_edge": 224}
    assert dict(processor.crop_size) == {"height": 224, "width": 224}
    assert processor.model_input_names == ["pixel_values_videos", "video_num_frames"]
    assert processor(list(pictures(1)))["pixel_values_videos"].shape == (1, 3, 224, 224)


def test_saving_and_loading(tmp_path, clip):
    processor = LlamaVidVideoProcessor(size=SIZE, crop_size=SIZE, fps=2, max_frames=5, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    loaded = AutoVideoProcessor.from_pretrained(tmp_path)

    assert isinstance(loaded, LlamaVidVideoProcessor)
    assert (tmp_path / "video_processing_llama_vid.py").is_file()
    assert (tmp_path / "video_decoding_llama_vid.py").is_file()
    assert dict(loaded.size) == {"shortest_edge": SIZE}
    assert (loaded.fps, loaded.max_frames, loaded.num_frames) == (2, 5, None)
    assert loaded.to_dict() == processor.to_dict()
    assert json.loads(loaded.to_json_string()) == json.loads(json.dumps(processor.to_dict()))
    assert torch.equal(loaded(clip)["pixel_values_videos"], processor(clip)["pixel_values_videos"])
    assert LlamaVidVideoProcessor.from_pretrained(tmp_path, num_frames=3, max_frames=2).num_frames == 3


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ({}, {}, 4),
        ({}, {"fps": 2}, 8),
        ({}, {"fps": 2.5}, 10),
        ({}, {"num_frames": 7}, 7),
        ({}, {"max_frames": 3}, 3),
        ({}, {"num_frames": 7, "max_frames": 5}, 5),
        ({}, {"do_sample_frames": False}, 100),
        ({"fps": 3}, {}, 12),
        ({"num_frames": 6}, {}, 6),
        ({"num_frames": 6}, {"fps": 2}, 8),
        ({"fps": 3, "max_frames": 5}, {"num_frames": 4}, 4),
        ({"max_frames": 5}, {"do_sample_frames": False}, 100),
        ({"do_sample_frames": False}, {}, 100),
    ],
)
def test_how_many_frames(clip, stored, asked, expected):
    processor = LlamaVidVideoProcessor(size=8, crop_size=8, **stored)
    assert processor(clip, **asked)["video_num_frames"].tolist() == [expected]
    assert sum(len(times) for _, times in processor.iter_chunks(clip, **asked)) == expected


def test_thinning_says_so(processor, clip, caplog):
    (metadata,) = processor(clip, fps=5, max_frames=4, return_metadata=True)["video_metadata"]
    assert metadata.timestamps == [0, 1, 2, 3]
    assert "Keeping 4 of the 20 frames" in caplog.text
    assert "every 1 s" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 0}, "fps must be a positive number of frames a second, got 0"),
        ({"fps": -1.5}, "got -1.5"),
        ({"fps": float("nan")}, "got nan"),
        ({"fps": float("inf")}, "got inf"),
        ({"fps": "1"}, "got '1'"),
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"num_frames": 2.5}, "got 2.5"),
        ({"max_frames": 0}, "max_frames must be a whole number of at least 1, got 0"),
        ({"fps": 1, "num_frames": 4}, "mutually exclusive"),
        ({"num_frames": 101}, "exceeds the 100 frames"),
    ],
)
def test_sampling_arguments_that_make_no_sense(processor, clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(clip, **arguments)
    with pytest.raises(ValueError, match=message):
        next(processor.iter_chunks(clip, **arguments))
    if len(arguments) == 1 and arguments != {"num_frames": 101}:
        with pytest.raises(ValueError, match=message):
            LlamaVidVideoProcessor(**arguments)


def test_unknown_arguments(processor, clip):
    with pytest.raises(TypeError, match="frames_per_second"):
        processor(clip, frames_per_second=2)
    with pytest.raises(TypeError, match="frames_per_second"):
        processor.iter_chunks(clip, frames_per_second=2)


def test_pixel_arguments_of_a_call(processor):
    video = stack(2)
    assert processor(video, size=20, crop_size=16)["pixel_values_videos"].shape == (2, 3, 16, 16)
    assert processor(video, do_resize=False, do_center_crop=False)["pixel_values_videos"].shape == (2, 3, 48, 64)

    plain = processor(video, do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)
    assert plain["pixel_values_videos"].dtype == torch.float32
    assert torch.equal(plain["pixel_values_videos"], torch.from_numpy(video).permute(0, 3, 1, 2).float())

    halves = processor(video, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=False, do_center_crop=False)
    torch.testing.assert_close(halves["pixel_values_videos"], plain["pixel_values_videos"] / 127.5 - 1)


def test_frames_of_one_batch_must_have_one_size(processor, clip, tall_clip):
    with pytest.raises(ValueError, match="do_center_crop=True"):
        processor([clip, tall_clip], do_center_crop=False)


# Chunk by chunk.


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 64])
def test_chunks_are_what_preprocess_returns(processor, clip, chunk_size):
    whole = processor(clip, fps=2.5, return_metadata=True)
    chunks = list(processor.iter_chunks(clip, fps=2.5, chunk_size=chunk_size))

    sizes = [len(times) for _, times in chunks]
    assert sizes == [chunk_size] * (10 // chunk_size) + [10 % chunk_size] * (10 % chunk_size > 0)
    assert all(pixels.shape == (len(times), 3, SIZE, SIZE) for pixels, times in chunks)
    assert all((pixels.dtype, times.dtype) == (torch.float32, torch.float64) for pixels, times in chunks)
    assert torch.equal(torch.cat([pixels for pixels, _ in chunks]), whole["pixel_values_videos"])
    assert torch.cat([times for _, times in chunks]).tolist() == whole["video_metadata"][0].timestamps


def test_chunks_are_made_when_they_are_asked_for(processor, monkeypatch):
    resize, resized = processor.resize, []
    monkeypatch.setattr(processor, "resize", lambda image, **kwargs: resized.append(image) or resize(image, **kwargs))

    chunks = processor.iter_chunks(list(pictures(20)), chunk_size=3)
    assert len(resized) == 0
    for count in (3, 6, 9):
        next(chunks)
        assert len(resized) == count
    chunks.close()
    assert len(resized) == 9


def test_threads_decode_no_more_than_a_few_groups_ahead(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "available_threads", lambda: 2)
    path = write_clip(tmp_path / "clip.mp4", pictures(200), gop_size=10)
    resize, resized = processor.resize, []
    monkeypatch.setattr(processor, "resize", lambda image, **kwargs: resized.append(image) or resize(image, **kwargs))

    chunks = processor.iter_chunks(path, fps=25, chunk_size=10)
    assert len(resized) == 0
    next(chunks)
    assert 10 < len(resized) <= 1 + 10 * 5  # the picture that tells their size, a group and the four that may follow
    chunks.close()
    assert len(resized) < 200


def test_what_is_known_before_the_frames(processor, clip):
    with processor.open(clip, fps=2.5, chunk_size=4) as reader:
        assert reader.num_frames == 10
        assert reader.metadata.duration == pytest.approx(4)
        assert reader.metadata.times is None
        assert [len(times) for _, times in reader.chunks] == [4, 4, 2]


def test_a_chunk_holds_small_frames_only(processor, clip, monkeypatch):
    """What waits for a chunk to be full must not keep the full-size frames alive, as views of them would."""
    waiting, stack_frames = [], torch.stack
    monkeypatch.setattr(torch, "stack", lambda frames: waiting.extend(frames) or stack_frames(frames))
    next(processor.iter_chunks(clip, do_resize=False, chunk_size=4))
    assert [frame.untyped_storage().nbytes() for frame in waiting] == [3 * SIZE * SIZE] * 4


def test_iter_chunks_takes_what_preprocess_takes(processor, clip):
    (pixels, times), *others = processor.iter_chunks([clip.read_bytes()], size=16, crop_size=16, num_frames=2)
    assert others == []
    assert pixels.shape == (2, 3, 16, 16)
    assert times.tolist() == [0, 2]


def test_iter_chunks_refuses_what_it_cannot_do(processor, clip):
    for chunk_size in (0, -1, 2.5):
        with pytest.raises(ValueError, match="chunk_size must be a whole number of at least 1"):
            processor.iter_chunks(clip, chunk_size=chunk_size)
    with pytest.raises(ValueError, match="One video is read at a time, got 2"):
        processor.iter_chunks([clip, clip])


def test_frames_are_held_once(processor, monkeypatch):
    """`preprocess` keeps no chunk beside what it fills with them, of one video and of several."""
    made, alive, rescale = [], [], processor._rescale_and_normalize

    def watched(frames, settings):
        alive.append(sum(chunk() is not None for chunk in made))
        chunk = rescale(frames, settings)
        made.append(weakref.ref(chunk))
        return chunk

    monkeypatch.setattr(processor, "_rescale_and_normalize", watched)
    videos = [stack(130), stack(3)]
    output = processor(videos)
    assert alive == [0] * 4  # 64, 64 and 2 frames, and 3
    assert output["video_num_frames"].tolist() == [130, 3]
    expected = [pixels for video in videos for pixels, _ in processor.iter_chunks(video)]
    assert torch.equal(output["pixel_values_videos"], torch.cat(expected))


# Frames in memory.


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda video: video, id="array"),
        pytest.param(lambda video: video.transpose(0, 3, 1, 2), id="channels first"),
        pytest.param(torch.from_numpy, id="tensor"),
        pytest.param(lambda video: torch.from_numpy(video).permute(0, 3, 1, 2), id="tensor, channels first"),
        pytest.param(list, id="list of arrays"),
        pytest.param(lambda video: tuple(map(torch.from_numpy, video)), id="tuple of tensors"),
        pytest.param(lambda video: [Image.fromarray(frame) for frame in video], id="PIL images"),
        pytest.param(lambda video: video[:, :, :, ::-1].copy()[:, :, :, ::-1], id="reversed view"),
    ],
)
def test_forms_of_frames_in_memory(processor, convert):
    video = stack(3)
    output = processor(convert(video), return_metadata=True)
    expected = torch.stack([prepare(frame, SIZE) for frame in video])
    torch.testing.assert_close(output["pixel_values_videos"], expected, atol=1e-5, rtol=0)
    assert output["video_num_frames"].tolist() == [3]
    assert output["video_metadata"][0].timestamps == [0, 1, 2]


def test_frames_of_different_sizes_in_one_list(processor):
    frames = [*pictures(1), *pictures(1, height=60, width=36)]
    expected = torch.stack([prepare(frame, SIZE) for frame in frames])
    torch.testing.assert_close(processor(frames)["pixel_values_videos"], expected, atol=1e-5, rtol=0)


def test_floats_are_taken_as_they_are(processor):
    video = stack(2)
    expected = processor(video)["pixel_values_videos"]
    for values, arguments in ((video.astype(np.float64), {}), (video.astype(np.float32) / 255, {"do_rescale": False})):
        output = processor(values, **arguments)["pixel_values_videos"]
        assert output.dtype == torch.float32
        assert (output - expected).abs().mean() < 0.02  # resizing uint8 rounds
    integers = processor(video.astype(np.int64))["pixel_values_videos"]
    assert (integers - expected).abs().mean() < 0.02


def test_grey_frames_and_alpha(processor):
    grey = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 1), dtype=np.uint8)
    colour = np.repeat(grey, 3, axis=3)
    expected = processor(colour)["pixel_values_videos"]
    assert torch.equal(processor(grey)["pixel_values_videos"], expected)
    assert torch.equal(processor([Image.fromarray(frame[..., 0]) for frame in grey])["pixel_values_videos"], expected)
    with_alpha = np.concatenate([colour, grey], axis=3)
    assert torch.equal(processor(with_alpha)["pixel_values_videos"], expected)
    with pytest.raises(ValueError, match=r"must have three channels .* do_convert_rgb"):
        processor(grey, do_convert_rgb=False)


def test_channel_axis(processor):
    video = np.zeros((2, 3, 40, 3), np.uint8)
    assert processor(video, input_data_format="channels_last")["pixel_values_videos"].shape == (2, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"Frame 0 of video 0, of shape \(40, 50, 60\), has no axis of 1, 3 or 4"):
        processor(np.zeros((2, 40, 50, 60), np.uint8))
    with pytest.raises(ValueError, match="has no axis of 1, 3 or 4"):
        processor(np.zeros((2, 40, 50, 2), np.uint8))


def test_frames_without_a_clock_are_all_kept(processor):
    video = stack(50)
    assert processor(video)["video_num_frames"].tolist() == [50]
    output = processor(video, num_frames=4, return_metadata=True)
    assert output["video_metadata"][0].frames_indices == [0, 12, 25, 37]
    assert processor(video, max_frames=5)["video_num_frames"].tolist() == [5]
    with pytest.raises(ValueError, match="exceeds the 50 frames"):
        processor(video, num_frames=51)
    with pytest.raises(ValueError, match=r"fps=2 was asked for, but video 0 is frames in memory.*video_metadata"):
        processor(video, fps=2)


@pytest.mark.parametrize("given", [{"fps": 10}, VideoMetadata(total_num_frames=35, fps=10.0), [[{"fps": 10}]]])
def test_frames_with_a_clock_are_sampled(processor, given):
    output = processor(list(pictures(35)), video_metadata=given, return_metadata=True)
    (metadata,) = output["video_metadata"]
    assert metadata.frames_indices == [0, 10, 20, 30]
    assert metadata.timestamps == [0, 1, 2, 3]
    assert (metadata.fps, metadata.duration, metadata.total_num_frames) == (10, 3.5, 35)
    expected = processor(stack(35)[[0, 10, 20, 30]])["pixel_values_videos"]
    assert torch.equal(output["pixel_values_videos"], expected)

    chunks = processor.iter_chunks(stack(35), fps=2, video_metadata={"fps": 10}, chunk_size=4)
    assert [times.tolist() for _, times in chunks] == [[0, 0.5, 1, 1.5], [2, 2.5, 3]]
    everything = processor(stack(35), video_metadata=given, do_sample_frames=False, return_metadata=True)
    assert everything["video_metadata"][0].timestamps == pytest.approx([index / 10 for index in range(35)])


def test_frames_that_are_a_sample_already(processor):
    given = {"fps": 25, "frames_indices": [50, 75, 100, 125], "total_num_frames": 500}
    (metadata,) = processor(stack(4), video_metadata=given, return_metadata=True)["video_metadata"]
    assert metadata.timestamps == [0, 1, 2, 3]
    assert metadata.frames_indices == [50, 75, 100, 125]
    assert metadata.total_num_frames == 500
    with pytest.raises(ValueError, match="one for each of the 3 frames"):
        processor(stack(3), video_metadata=given)


def test_metadata_must_be_one_a_video(processor):
    with pytest.raises(ValueError, match="1 entries for 2 videos"):
        processor([stack(2), stack(2)], video_metadata=[{"fps": 5}])
    with pytest.raises(ValueError, match="fps must be a positive number"):
        processor(stack(2), video_metadata={"fps": 0.0})


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_of_more_than_8_bits_are_refused(processor, mode):
    with pytest.raises(ValueError, match=f"Frame 0 of video 0 is a picture of mode {mode}, not of 8 bits a channel"):
        processor([Image.new(mode, (60, 60))] * 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_video_and_frame(processor, value):
    video = stack(3).astype(np.float32)
    video[2, 5, 6, 1] = value
    with pytest.raises(ValueError, match="Frame 2 of video 1 has NaN or infinite values"):
        processor([stack(2), video])
    with pytest.raises(ValueError, match="Frame 2 of the video has NaN"):
        list(processor.iter_chunks(video))


# Flat lists of single videos.


def test_flatten_videos(clip):
    frames, image = list(pictures(2)), Image.new("RGB", (8, 8))
    single = [str(clip), clip, b"content", "https://host/film.mp4", stack(2), torch.zeros(2, 3, 8, 8)]
    for video in single:
        (flat,) = flatten_videos(video)
        assert flat is video
        (flat,) = flatten_videos([[video]])
        assert flat is video
    assert len(flatten_videos(single)) == len(single)
    assert flatten_videos([image, image]) == [[image, image]]
    assert len(flatten_videos([frames, [frames, frames]])) == 3
    assert len(flatten_videos(np.zeros((4, 2, 8, 8, 3)))) == 4
    assert len(flatten_videos([torch.zeros(4, 2, 3, 8, 8), str(clip)])) == 5
    assert flatten_videos([["a.mp4"], [], ["b.mp4", "c.mp4"]]) == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("videos", "error", "message"),
    [
        ([], ValueError, "videos is empty"),
        ([[], []], ValueError, "videos is empty"),
        (np.zeros((0, 8, 8, 3)), ValueError, r"no frames or no pixels: its shape is \(0, 8, 8, 3\)"),
        (torch.zeros(2, 3, 0, 8), ValueError, "no frames or no pixels"),
        (np.zeros((8, 8, 3)), ValueError, "A single frame is no video"),
        (["a.mp4", Image.new("RGB", (8, 8))], ValueError, "A single frame is no video"),
        (np.zeros((8, 8)), TypeError, r"got ndarray of shape \(8, 8\)"),
        (None, TypeError, "got NoneType"),
        ([3], TypeError, "got int"),
        ({"video": "a.mp4"}, TypeError, "got dict"),
    ],
)
def test_what_is_no_video(processor, videos, error, message):
    with pytest.raises(error, match=message):
        flatten_videos(videos)
    with pytest.raises(error, match=message):
        processor(videos)


def test_files_that_are_no_videos(processor, tmp_path, clip):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        processor([clip, tmp_path / "nowhere.mp4"])
    with pytest.raises(ValueError, match="<0 bytes> is empty"):
        processor(b"")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match=r"empty\.mp4 is an empty file"):
        next(processor.iter_chunks(tmp_path / "empty.mp4"))
