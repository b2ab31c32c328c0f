# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""torchcodec, or a stand-in built on PyAV, gives the frames and times that PyAV gives, or a clear error."""

import io
import struct
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from small_videos import encode, pictures
from test_video_exactness import SHORT_WAY, X264, needs, patched, scenes

from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling.video_decoding_llama_vid import open_file


class StandIn:
    """`torchcodec.decoders.VideoDecoder` as far as it is used; `asked` are the instants of each call."""

    asked: list[list[float]] = []

    def __init__(self, source: str | bytes, *, num_ffmpeg_threads: int = 1) -> None:
        self.threads = num_ffmpeg_threads
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else source) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            self.seconds = [float(frame.pts * stream.time_base) for frame in frames]
            self.end = self.seconds[-1] + float(frames[-1].duration * stream.time_base)
        turned = (np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in frames)
        self.frames = [torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in turned]
        self.metadata = SimpleNamespace(begin_stream_seconds=self.seconds[0])

    def get_frames_played_at(self, seconds: list[float]) -> SimpleNamespace:
        self.asked.append(seconds)
        if min(seconds) < self.seconds[0] or max(seconds) >= self.end:
            raise IndexError("frame pts is out of range")
        indices = [max(i for i, start in enumerate(self.seconds) if start <= instant) for instant in seconds]
        data = torch.stack([self.frames[index] for index in indices])  # (frames, 3, height, width)
        return SimpleNamespace(data=data, pts_seconds=torch.tensor([self.seconds[i] for i in indices]).double())


def use(monkeypatch, decoder) -> None:
    """Have `decoder` imported instead of torchcodec's, whether that is installed or not."""
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = decoder
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)


@pytest.fixture
def stand_in(monkeypatch) -> type[StandIn]:
    monkeypatch.setattr(StandIn, "asked", [])
    use(monkeypatch, StandIn)
    return StandIn


@pytest.fixture
def real() -> None:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not load: {str(error).splitlines()[0]}")


@pytest.fixture(params=["real", "stand_in"])
def torchcodec(request) -> None:
    request.getfixturevalue(request.param)


def read_with(backend: str, video, rule: dict, **options):
    with open_file(video, rule, video_backend=backend, **options) as clip:
        frames = list(clip.frames)
    assert clip.metadata.video_backend == backend
    return [image for image, _ in frames], [seconds for _, seconds in frames], clip.metadata


def check(video, rules=({"fps": 1}, {"fps": 11}, {"fps": 60}, {"num_frames": 7}, {"fps": None}), **options) -> None:
    for rule in rules:
        expected, expected_times, expected_metadata = read_with("pyav", video, rule, **options)
        images, times, metadata = read_with("torchcodec", video, rule, **options)
        assert times == expected_times
        assert metadata.frames_indices == expected_metadata.frames_indices
        for image, picture in zip(images, expected, strict=True):
            assert image.dtype == torch.uint8
            assert torch.equal(image, picture)


# The same frames.


FILES = {
    "b_frames.mp4": SHORT_WAY["b_frames.mp4"],
    "b_frames.mkv": SHORT_WAY["b_frames.mp4"],
    "open_groups.mp4": SHORT_WAY["open_groups.mp4"],
    "film.mp4": SHORT_WAY["film.mp4"],
    "ntsc.mkv": SHORT_WAY["ntsc.mkv"],
    "full_range.mp4": SHORT_WAY["full_range.mp4"],
    "hevc.mp4": SHORT_WAY["hevc_open_groups.mp4"],
    "vp9.webm": {"codec": "libvpx-vp9", "g": 12, "deadline": "realtime", "cpu-used": 8},
    "av1.mkv": {"codec": "libsvtav1", "g": 12, "preset": 12},
    "mpeg4.mp4": {"codec": "mpeg4", "g": 12, "bf": 2},
    "animation.gif": {"codec": "gif", "pixel_format": "rgb8"},
}


@pytest.mark.parametrize("name", FILES)
def test_the_frames_are_those_of_pyav(tmp_path, torchcodec, name):
    needs(FILES[name].get("codec", "libx264"))
    check(encode(tmp_path / name, scenes(60), **FILES[name]))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_variable_frame_rate_that_starts_late(tmp_path, torchcodec, name):
    pauses = np.random.default_rng(1).choice([1, 1, 2, 3, 9], size=70)
    pts = (250 + np.cumsum(pauses)).tolist()
    check(encode(tmp_path / name, scenes(70), rate=50, pts=pts, g=10, bf=3))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_rotation(tmp_path, torchcodec, matrix):
    a, b, c, d = (65536 * value for value in matrix)
    path = encode(tmp_path / "clip.mp4", scenes(30), g=10)
    check(patched(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)), [{"fps": 5}])


def test_edit_lists(tmp_path, torchcodec):
    path = encode(tmp_path / "clip.mp4", scenes(100), g=20, bf=0)
    check(patched(path, b"elst", 8, struct.pack(">Iii", 2000, 12800 * 20 // 25, 65536)), [{"fps": 5}])


def test_odd_sizes_and_one_frame(tmp_path, torchcodec):
    check(encode(tmp_path / "odd.mp4", scenes(30, 37, 51), pixel_format="yuv444p"))
    check(encode(tmp_path / "one.mp4", scenes(1)), [{"fps": 1}, {"fps": None}])


@pytest.fixture
def clip(tmp_path) -> Path:
    return encode(tmp_path / "clip.mp4", scenes(100), g=20, bf=2, **{X264: "scenecut=0"})


def test_bytes(clip, torchcodec):
    check(clip.read_bytes(), [{"fps": 5}])


def test_a_part_and_keyframes_only(clip, torchcodec):
    check(clip, [{"fps": 2, "start": 1.3, "end": 3}])
    check(clip, [{"fps": 1}, {"fps": 10}], keyframes_only=True)


def test_the_processor(clip, torchcodec):
    options = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    expected = LlamaVidVideoProcessor(**options)(clip, fps=3)["pixel_values_videos"]
    batch = LlamaVidVideoProcessor(**options, video_backend="torchcodec")(clip, fps=3, return_metadata=True)
    assert torch.equal(batch["pixel_values_videos"], expected)
    assert batch["video_metadata"][0].video_backend == "torchcodec"
    (pixels, _), *_ = LlamaVidVideoProcessor(**options).iter_chunks(clip, fps=3, video_backend="torchcodec")
    assert torch.equal(pixels, expected)


def grey(count: int):
    for picture in scenes(count):
        picture[:] = picture.mean(axis=2, keepdims=True)
        yield picture


@pytest.mark.parametrize("name", ["ten_bit.mp4", "interlaced.mp4"])
def test_only_the_chroma_of_other_formats_may_differ(tmp_path, real, name):
    """FFmpeg's releases, of which each backend has its own, interpolate it differently."""
    path = encode(tmp_path / name, grey(30), **SHORT_WAY[name])
    expected, expected_times, _ = read_with("pyav", path, {"fps": 5})
    images, times, _ = read_with("torchcodec", path, {"fps": 5})
    assert times == expected_times
    for image, picture in zip(images, expected, strict=True):
        assert (image.int() - picture.int()).abs().max() <= 3


@pytest.mark.parametrize("name", ["clip.ts", "clip.avi"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_another_frame_is_an_error(tmp_path, real, name, b_frames):
    """torchcodec 0.17 does not find those before the second keyframe of an MPEG-TS, and counts an AVI's from zero."""
    path = encode(tmp_path / name, scenes(75), g=12, bf=b_frames)
    try:
        images, _, metadata = read_with("torchcodec", path, {"fps": 5})
    except ValueError as error:
        if 'use video_backend="pyav"' not in str(error):
            raise
        return
    expected, _, expected_metadata = read_with("pyav", path, {"fps": 5})
    assert metadata.frames_indices == expected_metadata.frames_indices
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


# How torchcodec is asked.


def test_each_frame_is_asked_for_once_in_batches_in_its_middle(tmp_path, stand_in):
    path = encode(tmp_path / "clip.mkv", scenes(20), rate=Fraction(30000, 1001))
    prepared = []
    options = {"prepare": lambda image: prepared.append(image) or image}
    images, times, metadata = read_with("torchcodec", path, {"fps": 60}, **options)
    assert len(images) > len(prepared) == len(set(metadata.frames_indices)) == 20
    assert len({id(image) for image in images}) == 20
    assert [len(seconds) for seconds in stand_in.asked] == [8, 8, 4]
    ticks = [1000 * instant for seconds in stand_in.asked for instant in seconds]
    assert ticks == [pytest.approx(1000 * seconds + 0.5) for seconds in sorted(set(times))]


def test_no_more_is_decoded_than_is_read(clip, stand_in):
    with open_file(clip, {"fps": 25}, video_backend="torchcodec") as opened:
        next(opened.frames)
        assert len(stand_in.asked) == 1


def test_threads(clip, monkeypatch):
    threads = []

    class Counting(StandIn):
        def __init__(self, source, *, num_ffmpeg_threads):
            threads.append(num_ffmpeg_threads)
            super().__init__(source)

    use(monkeypatch, Counting)
    read_with("torchcodec", clip, {"fps": 1}, threads=3)
    assert threads == [3]


# What may be wrong.


@pytest.mark.parametrize("error", [ImportError("No module"), OSError("libavutil.so"), RuntimeError("Could not load")])
def test_torchcodec_that_does_not_load(clip, monkeypatch, error):
    class Missing(ModuleType):
        def __getattr__(self, name):
            raise error

    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Missing("torchcodec.decoders"))
    with pytest.raises(ImportError, match=r"needs torchcodec \(pip install torchcodec\)") as raised:
        read_with("torchcodec", clip, {"fps": 1})
    assert raised.value.__cause__ is error


def test_torchcodec_that_is_not_installed(clip, monkeypatch):
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match='video_backend="pyav" needs neither'):
        read_with("torchcodec", clip, {"fps": 1})


def test_other_times_than_the_containers_are_an_error(clip, monkeypatch):
    class Late(StandIn):
        def get_frames_played_at(self, seconds):
            batch = super().get_frames_played_at(seconds)
            batch.pts_seconds[1:] += 1 / 12800  # a tick
            return batch

    use(monkeypatch, Late)
    with open_file(clip, {"fps": 1}, video_backend="torchcodec") as opened:
        assert next(opened.frames)[1] == 0
        message = r'shows another frame of .*clip\.mp4 than .* 1\.00 s after its start: use video_backend="pyav"'
        with pytest.raises(ValueError, match=message):
            next(opened.frames)


def test_a_shifted_clock_is_an_error(clip, monkeypatch):
    class Shifted(StandIn):
        def __init__(self, source, **options):
            super().__init__(source, **options)
            self.metadata.begin_stream_seconds += 1 / 25

    use(monkeypatch, Shifted)
    with pytest.raises(ValueError, match=r"shows another frame of .*clip\.mp4 than its container has 0\.00 s after"):
        read_with("torchcodec", clip, {"fps": 1})


def test_without_timestamps(tmp_path, stand_in):
    path = encode(tmp_path / "raw.h264", pictures(30))
    with pytest.raises(ValueError, match=r'raw\.h264 has no timestamps, .*: use video_backend="pyav"'):
        read_with("torchcodec", path, {"fps": 1})


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_file_that_torchcodec_does_not_open(clip, monkeypatch, error):
    class Refusing(StandIn):
        def __init__(self, source, **options):
            raise error("no best stream")

    use(monkeypatch, Refusing)
    with pytest.raises(ValueError, match=r"torchcodec cannot open .*clip\.mp4: no best stream"):
        read_with("torchcodec", clip, {"fps": 1})


@pytest.mark.parametrize("error", [RuntimeError, ValueError, IndexError])
def test_damage(clip, monkeypatch, caplog, error):
    class Failing(StandIn):
        def get_frames_played_at(self, seconds):
            if max(seconds) > 2:
                raise error("no more frames left to decode")
            return super().get_frames_played_at(seconds)

    use(monkeypatch, Failing)
    expected, expected_times, _ = read_with("pyav", clip, {"fps": 5})
    message = r"torchcodec cannot decode .*clip\.mp4 2\.00 s after .*no more frames left to decode"
    with open_file(clip, {"fps": 5}, video_backend="torchcodec") as opened:
        frames = [next(opened.frames) for _ in range(10)]
        with pytest.raises(ValueError, match=message + r'.*on_error="keep"'):
            next(opened.frames)
    assert [seconds for _, seconds in frames] == expected_times[:10]
    assert all(torch.equal(image, picture) for (image, _), picture in zip(frames, expected, strict=False))

    images, times, _ = read_with("torchcodec", clip, {"fps": 5}, on_error="keep")
    assert times == expected_times[:10]
    assert all(torch.equal(*pair) for pair in zip(images, expected[:10], strict=True))
    (record,) = caplog.records
    assert "torchcodec cannot decode" in record.message
    assert "10 frames from before that are kept" in record.message
