# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Decoding only what the wanted frames need gives the very frames and times that decoding everything gives."""

import struct
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from small_videos import decode_everything, encode, on_screen_at, pictures, read

from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling import video_decoding_llama_vid as decoding
from llama_vid.modeling import video_groups_llama_vid as groups
from llama_vid.modeling.video_decoding_llama_vid import open_container, open_file, read_timeline
from llama_vid.modeling.video_groups_llama_vid import PacketIndex, Run, plan_runs

RULES = [{"fps": 1}, {"fps": 2.5}, {"fps": 11}, {"num_frames": 7}, {"fps": 60}, {"fps": None}]
FILM, NTSC, FAST = Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001)


def scenes(count: int, height: int = 64, width: int = 80):
    """A rough texture that moves, so that a picture made from wrong references is another one."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (2 * height, 2 * width, 3), dtype=np.uint8)
    texture = texture.repeat(2, axis=0).repeat(2, axis=1)
    for index in range(count):
        top, left = (3 * index) % height, (2 * index) % width
        picture = texture[top : top + height, left : left + width].copy()
        picture[:8, : 8 + index % 40] = (index * 7 % 256, 255, index * 3 % 256)
        yield picture


def is_read_the_short_way(path: Path, monkeypatch, **rule) -> bool:
    """Whether decoding everything was not what gave the frames."""
    plain, frames_on_screen = [], decoding.frames_on_screen
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "frames_on_screen", lambda *args: plain.append(args) or frames_on_screen(*args))
        read(path, threads=2, **rule)
    return not plain


def check(path: Path, rules=RULES, turns: int = 0) -> None:
    """Frames and times at several rates, in one thread and in several, are those of decoding everything."""
    pts, decoded, time_base = decode_everything(path)
    for rule in rules:
        for threads in (1, 3):
            images, times, metadata = read(path, threads=threads, **rule)
            if rule.get("fps"):
                instants = [number / Fraction(rule["fps"]) for number in range(len(times))]
                assert metadata.frames_indices == [on_screen_at(instant, pts, time_base) for instant in instants]
            assert metadata.total_num_frames == len(pts)
            assert times == [float((pts[index] - pts[0]) * time_base) for index in metadata.frames_indices]
            for image, index in zip(images, metadata.frames_indices, strict=True):
                assert np.array_equal(image.permute(1, 2, 0).numpy(), np.rot90(decoded[index], -turns)), (rule, index)


def needs(codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")


X264, X265 = "x264-params", "x265-params"
SHORT_WAY = {
    "b_frames.mp4": {"g": 12, "bf": 3, X264: "b-pyramid=normal:scenecut=0"},
    "no_b_frames.mp4": {"g": 12, "bf": 0},
    "open_groups.mp4": {"g": 12, "bf": 3, X264: "open-gop=1:scenecut=0"},
    "open_groups.mkv": {"g": 12, "bf": 3, X264: "open-gop=1:scenecut=0"},
    "open_groups.ts": {"g": 12, "bf": 3, X264: "open-gop=1:scenecut=0"},
    "closed_groups.mkv": {"g": 12, "bf": 3, X264: "open-gop=0:scenecut=0"},
    "closed_groups.ts": {"g": 12, "bf": 3, X264: "open-gop=0:scenecut=0"},
    "one_frame_groups.mkv": {"g": 1},
    "two_frame_groups.mp4": {"g": 2, "bf": 1},
    "many_references.mkv": {"g": 30, "bf": 3, X264: "ref=8:b-pyramid=strict:scenecut=0"},
    "slow_recovery.mkv": {"g": 12, X264: "intra-refresh=1:bframes=0"},
    "single_keyframe.mp4": {"g": 1000, X264: "scenecut=0"},
    "film.mp4": {"rate": FILM, "g": 20},
    "ntsc.mkv": {"rate": NTSC, "g": 20},
    "fast.mp4": {"rate": 60, "g": 20},
    "fast_ntsc.ts": {"rate": FAST, "g": 20},
    "ten_bit.mp4": {"pixel_format": "yuv420p10le", "g": 12},
    "full_range.mp4": {"pixel_format": "yuvj420p", "g": 12},
    "full_chroma.mkv": {"pixel_format": "yuv444p", "g": 12},
    "interlaced.mp4": {"g": 12, X264: "interlaced=1:tff=1"},
    "interlaced.ts": {"g": 12, X264: "interlaced=1:tff=1:open-gop=1"},
    "slices.mp4": {"g": 12, X264: "slices=4:scenecut=0"},
    "hevc_open_groups.mp4": {"codec": "libx265", X265: "keyint=12:min-keyint=12:open-gop=1:bframes=4:log-level=none"},
    "hevc_open_groups.mkv": {"codec": "libx265", X265: "keyint=12:min-keyint=12:open-gop=1:bframes=4:log-level=none"},
    "hevc_closed_groups.ts": {"codec": "libx265", X265: "keyint=12:min-keyint=12:open-gop=0:log-level=none"},
    "hevc_radl.mkv": {"codec": "libx265", X265: "keyint=12:min-keyint=12:open-gop=0:radl=2:log-level=none"},
    "hevc_temporal_layers.mp4": {"codec": "libx265", X265: "keyint=24:temporal-layers=3:bframes=4:log-level=none"},
    "hevc_ten_bit.mp4": {"codec": "libx265", "pixel_format": "yuv420p10le", X265: "keyint=12:log-level=none"},
}


@pytest.mark.parametrize("name", SHORT_WAY)
def test_the_short_way_gives_the_same(tmp_path, monkeypatch, name):
    options = SHORT_WAY[name]
    needs(options.get("codec", "libx264"))
    path = encode(tmp_path / name, scenes(75), **options)
    check(path)
    assert is_read_the_short_way(path, monkeypatch)


OTHERS = {
    "vp9.webm": {"codec": "libvpx-vp9", "g": 12, "deadline": "realtime", "cpu-used": 8},
    "vp8.webm": {"codec": "libvpx", "g": 12, "deadline": "realtime", "cpu-used": 8},
    "av1.mkv": {"codec": "libsvtav1", "g": 12, "preset": 12},
    "av1_ten_bit.mkv": {"codec": "libsvtav1", "pixel_format": "yuv420p10le", "g": 12, "preset": 12},
    "mpeg4.mp4": {"codec": "mpeg4", "g": 12, "bf": 2},
    "mpeg4_ntsc.avi": {"codec": "mpeg4", "rate": NTSC, "g": 12, "bf": 0},
    "mpeg2.ts": {"codec": "mpeg2video", "g": 12, "bf": 2},
    "mpeg2_interlaced.ts": {"codec": "mpeg2video", "g": 12, "bf": 2, "flags": "+ilme+ildct"},
    "mjpeg.mkv": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "animation.gif": {"codec": "gif", "pixel_format": "rgb8"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_codecs_give_the_same(tmp_path, name):
    needs(OTHERS[name]["codec"])
    check(encode(tmp_path / name, scenes(60), **OTHERS[name]), RULES[:4])


OF_EACH_CODEC = {
    "h264.mp4": {"g": 10, "bf": 3},
    "h264.mkv": {"g": 10, "bf": 3},
    "hevc.mp4": {"codec": "libx265", X265: "keyint=10:min-keyint=10:bframes=3:log-level=none"},
    "hevc.mkv": {"codec": "libx265", X265: "keyint=10:min-keyint=10:bframes=3:log-level=none"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 10, "deadline": "realtime", "cpu-used": 8},
    "av1.mkv": {"codec": "libsvtav1", "g": 10, "preset": 12},
    "mpeg4.mp4": {"codec": "mpeg4", "g": 10, "bf": 2},
    "animation.gif": {"codec": "gif", "pixel_format": "rgb8"},
}


@pytest.mark.parametrize("name", OF_EACH_CODEC)
def test_each_codec_with_one_frame(tmp_path, name):
    options = OF_EACH_CODEC[name]
    needs(options.get("codec", "libx264"))
    if X265 in options:  # of one frame with B-frames, it now and then makes a packet that no container takes
        options = options | {X265: "bframes=0:log-level=none"}
    check(encode(tmp_path / name, scenes(1), **options), [{"fps": 1}, {"num_frames": 1}, {"fps": None}])


@pytest.mark.parametrize("name", OF_EACH_CODEC)
def test_each_codec_with_frames_of_any_length(tmp_path, name):
    options = OF_EACH_CODEC[name]
    needs(options.get("codec", "libx264"))
    pts = (250 + np.cumsum(np.random.default_rng(2).choice([1, 2, 3, 9], size=40))).tolist()
    check(encode(tmp_path / name, scenes(40), rate=50, pts=pts, **options), RULES[:4])


@pytest.mark.parametrize("name", [name for name in OF_EACH_CODEC if name != "animation.gif"])
def test_each_codec_without_its_last_frames(tmp_path, name):
    options = OF_EACH_CODEC[name]
    needs(options.get("codec", "libx264"))
    whole = encode(tmp_path / f"whole_{name}", scenes(45), **options)
    check(remux(whole, tmp_path / name, keep=lambda number, packet: number < 37), RULES[:4])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_variable_frame_rate_that_starts_late(tmp_path, monkeypatch, name, b_frames):
    pauses = np.random.default_rng(1).choice([1, 1, 2, 3, 9], size=70)
    pts = (250 + np.cumsum(pauses)).tolist()
    path = encode(tmp_path / name, scenes(70), rate=50, pts=pts, g=10, bf=b_frames)
    check(path)
    assert is_read_the_short_way(path, monkeypatch)


@pytest.mark.parametrize("name", [name for name in OF_EACH_CODEC if name != "av1.mkv"])  # its encoder takes none
def test_odd_sizes(tmp_path, name):
    options = OF_EACH_CODEC[name]
    needs(options.get("codec", "libx264"))
    if options.get("codec", "libx264") in ("libx264", "libx265"):  # with half the chroma, they take none
        options = options | {"pixel_format": "yuv444p"}
    check(encode(tmp_path / name, scenes(40, 67, 83), **options), RULES[:4])


def test_one_frame(tmp_path):
    for name in ("one.mp4", "one.mkv", "one.ts"):
        check(encode(tmp_path / name, scenes(1)), [{"fps": 1}, {"num_frames": 1}, {"fps": None}])


@pytest.mark.parametrize("name", ["raw.h264", "clip.avi"])
def test_without_timestamps_everything_is_decoded(tmp_path, monkeypatch, name):
    path = encode(tmp_path / name, scenes(75), g=12, bf=2)
    _, decoded, _ = decode_everything(path)
    for threads in (1, 3):
        images, times, metadata = read(path, threads=threads)
        assert times == pytest.approx([0, 1, 2], abs=0.05)
        for image, index in zip(images, metadata.frames_indices, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), decoded[index])


def remux(source: Path, target: Path, keep=lambda number, packet: True, change=lambda number, packet: None) -> Path:
    """The same packets, or some of them, in another file."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        # Opaque: there may be no encoder of the decoder's name (AV1).
        stream = writer.add_stream_from_template(reader.streams.video[0], opaque=True)
        for number, packet in enumerate(packet for packet in reader.demux(video=0) if packet.size):
            if keep(number, packet):
                change(number, packet)
                packet.stream = stream
                writer.mux(packet)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_missing_at_the_end(tmp_path, suffix):
    whole = encode(tmp_path / f"whole{suffix}", scenes(75), g=20, bf=3)
    check(remux(whole, tmp_path / f"part{suffix}", keep=lambda number, packet: number < 67))


def test_frames_missing_in_the_middle(tmp_path):
    """References are gone: what the decoder makes of that is only seen by decoding everything."""
    whole = encode(tmp_path / "whole.mkv", scenes(75), g=20, bf=0)
    check(remux(whole, tmp_path / "part.mkv", keep=lambda number, packet: number not in (25, 26, 45)))


def test_a_stream_that_begins_between_keyframes(tmp_path):
    whole = encode(tmp_path / "whole.ts", scenes(120), g=20, bf=3)
    content = whole.read_bytes()
    path = tmp_path / "tail.ts"
    path.write_bytes(content[188 * (len(content) // 188 // 5) :])
    check(path)


def test_keyframe_marks_are_not_believed(tmp_path):
    """A container may call any packet a keyframe: only what the codec itself says starts a run."""

    def mark(number, packet):
        packet.is_keyframe = True

    whole = encode(tmp_path / "whole.mkv", scenes(75), g=20, bf=3)
    check(remux(whole, tmp_path / "marked.mkv", change=mark))
    check(remux(whole, tmp_path / "marked.mp4", change=mark))


def patched(path: Path, box: bytes, offset: int, content: bytes) -> Path:
    data = bytearray(path.read_bytes())
    position = data.index(box) + len(box) + offset
    data[position : position + len(content)] = content
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("matrix", "clockwise"), [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)])
def test_rotation(tmp_path, monkeypatch, matrix, clockwise):
    path = encode(tmp_path / "clip.mp4", scenes(60), g=10)
    a, b, c, d = (65536 * value for value in matrix)
    patched(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    check(path, turns=clockwise)
    assert is_read_the_short_way(path, monkeypatch)


@pytest.mark.parametrize("first", [7, 20, 33])
def test_edit_lists(tmp_path, monkeypatch, first):
    path = encode(tmp_path / "clip.mp4", scenes(100), g=20, bf=0)
    # Of four seconds, two from some frame on: (duration in milliseconds, start in 1/12800 s, speed).
    patched(path, b"elst", 8, struct.pack(">Iii", 2000, 12800 * first // 25, 65536))
    check(path)
    assert is_read_the_short_way(path, monkeypatch)


# What is planned.


def plan(path: Path, wanted: list[int]):
    """Runs for frames by their numbers: (number of the run's first packet, packets, frames)."""
    with open_container(str(path), "clip") as container:
        timeline, index, _ = read_timeline(container, "clip")
    numbers = {pts: number for number, pts in enumerate(timeline.pts.tolist())}
    runs = plan_runs(index, timeline.pts[wanted].tolist())
    return [(run.start, run.stop - run.start, [numbers[pts] for pts in run.wanted]) for run in runs]


def test_only_what_is_needed_is_decoded(tmp_path):
    path = encode(tmp_path / "clip.mp4", scenes(100), g=20, bf=0, **{X264: "scenecut=0"})
    assert plan(path, [0, 3, 60, 62, 99]) == [(0, 4, [0, 3]), (60, 3, [60, 62]), (80, 20, [99])]


def test_frames_in_front_of_an_open_keyframe_are_decoded_from_the_one_before(tmp_path):
    needs("libx265")
    options = {
        "codec": "libx265",
        X265: "keyint=20:min-keyint=20:open-gop=1:bframes=3:b-adapt=0:scenecut=0:log-level=none",
    }
    path = encode(tmp_path / "clip.mp4", scenes(60), **options)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keyframe = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
    order = sorted(packet.pts for packet in packets)
    shown = order.index(packets[keyframe].pts)
    ((first, count, before), (second, _, after)) = plan(path, [shown - 1, shown])
    assert (first, before) == (0, [shown - 1])
    assert count > keyframe
    assert (second, after) == (keyframe, [shown])


@pytest.mark.parametrize("seed", range(3))
def test_runs_of_many_entries(seed):
    """Frames are shown in another order than they are stored: each entry's are those that a search for them finds."""
    random = np.random.default_rng(seed)
    starts = np.unique([0, *random.integers(0, 500, 60)])
    pts = np.concatenate([random.permutation(group) for group in np.split(np.arange(500), starts[1:])])
    for start, stop in zip(starts, [*starts[1:], 500], strict=True):  # the entry is the first that is shown
        place = start + int(pts[start:stop].argmin())
        pts[[start, place]] = pts[[place, start]]
    index = PacketIndex(SimpleNamespace(codec_context=SimpleNamespace(name="h264", extradata=b"")))
    for name, numbers in (("pts", pts), ("entries", starts)):
        getattr(index, name).extend(numbers.tolist())
    wanted = sorted(random.choice(500, 80, replace=False).tolist())

    entry_of = {frame: max(start for start in starts.tolist() if start <= frame) for frame in wanted}
    expected = []
    for start in sorted(set(entry_of.values())):
        frames = [frame for frame in wanted if entry_of[frame] == start]
        last = max(int(np.flatnonzero(pts == frame)[0]) for frame in frames)
        expected.append(Run(start, last + 1, frames))
    assert plan_runs(index, wanted) == expected


# Parts of a video, and keyframes only.


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_times_of_a_part_are_those_of_the_whole(tmp_path, name):
    path = encode(tmp_path / name, scenes(100), g=20, bf=3)
    pts, decoded, time_base = decode_everything(path)
    for threads in (1, 3):
        images, times, metadata = read(path, threads=threads, fps=2, start=1.3, end=3)
        expected = [on_screen_at(Fraction(instant), pts, time_base) for instant in ("1.3", "1.8", "2.3", "2.8")]
        assert metadata.frames_indices == expected
        assert times == [float((pts[index] - pts[0]) * time_base) for index in expected]
        assert all(
            np.array_equal(image.permute(1, 2, 0), decoded[i]) for image, i in zip(images, expected, strict=True)
        )
    with pytest.raises(ValueError, match=r"start=4.5 lies beyond the end"):
        read(path, start=4.5)


KEYFRAMES = {
    "h264.mp4": {"g": 20, "bf": 3, X264: "scenecut=0"},
    "h264.mkv": {"g": 20, "bf": 3, X264: "scenecut=0"},
    "h264.ts": {"g": 20, "bf": 3, X264: "scenecut=0"},
    "hevc.mp4": {"codec": "libx265", X265: "keyint=20:min-keyint=20:scenecut=0:log-level=none"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 20, "deadline": "realtime", "cpu-used": 8},
    "av1.mkv": {"codec": "libsvtav1", "g": 20, "preset": 12},
    "mpeg4.mp4": {"codec": "mpeg4", "g": 20, "bf": 2},
}


@pytest.mark.parametrize("name", KEYFRAMES)
def test_keyframes_only(tmp_path, monkeypatch, caplog, name):
    needs(KEYFRAMES[name].get("codec", "libx264"))
    path = encode(tmp_path / name, scenes(100), **KEYFRAMES[name])
    pts, decoded, time_base = decode_everything(path)
    with av.open(str(path)) as container:
        keyframes = [pts.index(packet.pts) for packet in container.demux(video=0) if packet.size and packet.is_keyframe]
    assert len(keyframes) > 3
    expected = [max(index for index in keyframes if index <= wanted) for wanted in (0, 25, 50, 75)]
    monkeypatch.setattr(decoding, "frames_on_screen", lambda *args: pytest.fail("everything was decoded"))

    for threads in (1, 3):
        caplog.clear()
        with open_file(path, {"fps": 1}, keyframes_only=True, threads=threads) as opened:
            frames = list(opened.frames)
        assert opened.metadata.frames_indices == expected
        for (image, seconds), index in zip(frames, expected, strict=True):
            assert seconds == float((pts[index] - pts[0]) * time_base)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), decoded[index])
        (record,) = caplog.records
        assert (record.levelname, name in record.message) == ("WARNING", True)
        assert "approximate" in record.message


def test_keyframes_of_a_stream_without_timestamps_are_not_known(tmp_path, caplog):
    path = encode(tmp_path / "raw.h264", scenes(75), g=20)
    expected, times, _ = read(path)
    with open_file(path, {"fps": 1}, keyframes_only=True) as opened:
        frames = list(opened.frames)
    assert [seconds for _, seconds in frames] == times
    assert all(torch.equal(image, other) for (image, _), other in zip(frames, expected, strict=True))
    assert "not known" in caplog.text


def test_options_of_the_processor(tmp_path):
    path = encode(tmp_path / "clip.mp4", scenes(100), g=20, bf=0, **{X264: "scenecut=0"})
    processor = LlamaVidVideoProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    (_, times), *_ = processor.iter_chunks(path, keyframes_only=True)
    assert times.tolist() == pytest.approx([0, 0.8, 1.6, 2.4])
    (_, times), *_ = processor.iter_chunks(path, start=1, end=3)
    assert times.tolist() == [1, 2]
    batch = processor(path, start=1, return_metadata=True)
    assert batch["video_metadata"][0].timestamps == [1, 2, 3]

    frames = list(scenes(100))
    batch = processor(frames, start=1, end=2.5, fps=2, video_metadata={"fps": 25}, return_metadata=True)
    assert batch["video_metadata"][0].timestamps == pytest.approx([1, 1.48, 2], abs=0.01)
    with pytest.raises(ValueError, match=r"start=1 .* frames in memory, whose rate is unknown"):
        processor(frames, start=1)
    for options, message in (({"start": 2, "end": 1}, "start=2 must be earlier than end=1"), ({"start": -1}, "got -1")):
        with pytest.raises(ValueError, match=message):
            processor(path, **options)


# What happens when the file is not as its packets said.


@pytest.fixture
def clip(tmp_path) -> Path:
    return encode(tmp_path / "clip.mp4", scenes(100), g=20, bf=2, **{X264: "scenecut=0"})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("failing", [0, 2])
def test_whatever_fails_everything_is_decoded(clip, monkeypatch, threads, failing):
    expected, expected_times, _ = read(clip, fps=5)
    frames_of = groups.RunDecoder.frames

    def frames(self, run):
        found = list(frames_of(self, run))
        yield from found[: len(found) // 2] if run.start == 20 * failing else found
        if run.start == 20 * failing:
            raise groups.NotAsIndexedError("of the test")

    monkeypatch.setattr(groups.RunDecoder, "frames", frames)
    images, times, _ = read(clip, fps=5, threads=threads)
    assert times == expected_times
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_seeks_that_land_elsewhere(clip, monkeypatch, threads):
    expected, _, _ = read(clip, fps=5)
    monkeypatch.setattr(groups.RunDecoder, "_packets_from", lambda self, start, container, stream: None)
    images, _, _ = read(clip, fps=5, threads=threads)
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_in_a_group_that_is_needed(clip, threads):
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(clip.read_bytes())
    for packet in packets[40:45]:
        content[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    clip.write_bytes(content)
    with (
        open_file(clip, {"fps": 5}, threads=threads) as opened,
        pytest.raises(ValueError, match=r"clip\.mp4 is damaged: decoding failed"),
    ):
        list(opened.frames)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("llama-vid-decode")]


def test_threads_end_when_frames_are_abandoned(clip):
    with open_file(clip, {"fps": 10}, threads=3) as opened:
        next(opened.frames)
        assert decoding_threads()
    assert not decoding_threads()

    with open_file(clip, {"fps": 10}, threads=3) as opened:
        next(opened.frames)
        opened.frames.close()
        assert not decoding_threads()


def test_frames_that_would_take_too_much_memory_are_decoded_one_run_after_another(clip, monkeypatch):
    expected, _, _ = read(clip, fps=10, threads=1)
    monkeypatch.setattr(groups, "MAX_WAITING_BYTES", 3 * 80 * 64 * 8)
    with open_file(clip, {"fps": 10}, threads=3) as opened:
        images = []
        for image, _ in opened.frames:
            assert not decoding_threads()
            images.append(image)
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


def test_bytes_are_decoded_side_by_side_too(clip):
    expected, _, _ = read(clip, fps=5, threads=1)
    images, _, _ = read(clip.read_bytes(), fps=5, threads=3)
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


def test_pictures_of_the_clips_differ():
    for make in (scenes, pictures):
        assert len({picture.tobytes() for picture in make(75)}) == 75
