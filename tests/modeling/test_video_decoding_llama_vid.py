# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Which frames are looked at, and that every kind of file gives the same ones."""

import gc
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from small_interlaced import write_fields
from small_videos import decode_everything, encode, on_screen_at, pictures, read

from llama_vid.data.clips import write_clip
from llama_vid.modeling.subtitle_tracks_llama_vid import first_frame_seconds
from llama_vid.modeling.video_decoding_llama_vid import frames_on_screen, open_file
from llama_vid.modeling.video_sampling_llama_vid import Timeline, choose_frames


def steady(count: int, rate: Fraction | int, start: int = 0) -> Timeline:
    """Frames at a constant rate, timed by a 1/90000 s clock that rounds as containers do."""
    stamps = [start + round(90000 * index / Fraction(rate)) for index in range(count + 1)]
    return Timeline(np.array(stamps[:-1]), end=stamps[-1], time_base=Fraction(1, 90000))


def assert_same_frames(images, expected) -> None:
    assert len(images) == len(expected)
    for image, picture in zip(images, expected, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture)


# Which frames.


@pytest.mark.parametrize(
    ("count", "rate", "expected"),
    [
        (96, 24, 4),
        (100, 25, 4),
        (120, 30, 4),
        (240, 60, 4),
        (40, 10, 4),
        (4, 1, 4),
        (96, Fraction(24000, 1001), 4),  # 4.004 s: the instant at 4 s is 0.1 frames before the end
        (120, Fraction(30000, 1001), 4),
        (240, Fraction(60000, 1001), 4),
        (101, 25, 5),  # 4.04 s: a whole frame is shown after 4 s
        (99, 25, 4),
        (76, 25, 4),
        (75, 25, 3),
        (18000, Fraction(30000, 1001), 601),  # 600.6 s are 600.6 s, whatever the camera counts
        (1, 25, 1),
        (25, 25, 1),
    ],
)
@pytest.mark.parametrize("start", [0, 7200, -3003])
def test_one_frame_a_second(count, rate, expected, start):
    indices = choose_frames(steady(count, rate, start), fps=1)
    assert len(indices) == expected
    assert indices == [min(int(second * Fraction(rate)), count - 1) for second in range(expected)]


@pytest.mark.parametrize("fps", [0.1, 1 / 3, 0.7, 1, 5 / 3, 2, 12.5, 23.976, 24, 29.97, 60])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, Fraction(30000, 1001)])
def test_frames_are_those_on_screen(fps, rate):
    timeline = steady(301, rate, start=1234)
    stamps = timeline.pts.tolist()
    indices = choose_frames(timeline, fps=fps)

    assert len(indices) == pytest.approx(301 / rate * fps, abs=1)
    for number, index in enumerate(indices):
        instant = number / Fraction(fps).limit_denominator(1000)
        assert index == on_screen_at(instant, stamps, timeline.time_base)


def test_a_timestamp_equal_to_the_instant_is_on_screen_and_the_next_tick_is_not():
    clock = Fraction(1, 12800)
    assert choose_frames(Timeline(np.array([0, 12799, 12800]), 25600, clock), fps=1) == [0, 2]
    assert choose_frames(Timeline(np.array([0, 12799, 12801]), 25600, clock), fps=1) == [0, 1]
    # 0.1 as a float is a little more than 1/10, and 10 s a little more than its tenth instant.
    assert choose_frames(Timeline(np.array([0, 128000]), 256000, clock), fps=0.1) == [0, 1]


def test_a_slide_is_repeated_for_as_long_as_it_is_on_screen():
    slides = Timeline(np.array([0, 10_000, 12_500]), end=15_000, time_base=Fraction(1, 1000))
    assert choose_frames(slides, fps=1) == [0] * 10 + [1] * 3 + [2] * 2
    still = Timeline(np.array([0]), end=3000, time_base=Fraction(1, 1000))
    assert choose_frames(still, fps=1) == [0, 0, 0]


def test_num_frames():
    timeline = steady(100, 25)
    assert choose_frames(timeline, num_frames=1) == [0]
    assert choose_frames(timeline, num_frames=8) == [0, 12, 25, 37, 50, 62, 75, 87]
    assert choose_frames(timeline, num_frames=100) == list(range(100))
    assert choose_frames(timeline) == list(range(100))
    # Milliseconds as in Matroska: i * duration / n lies before the rounded timestamp of frame i.
    rounded = Timeline(np.array([0, 42, 83, 125, 167]), end=208, time_base=Fraction(1, 1000))
    assert choose_frames(rounded, num_frames=5) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"num_frames=101 exceeds the 100 frames of clip\.mp4"):
        choose_frames(timeline, num_frames=101, name="clip.mp4")


def test_max_frames_thins_evenly_and_says_so(caplog):
    timeline = steady(250, 25)
    assert choose_frames(timeline, fps=1, max_frames=10) == choose_frames(timeline, fps=1)
    assert not caplog.records

    assert choose_frames(timeline, fps=1, max_frames=4, name="clip.mp4") == [0, 50, 125, 175]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("4 of the 10 frames", "clip.mp4", "max_frames=4", "every 2.5 s"):
        assert part in record.message

    assert choose_frames(timeline, max_frames=2) == [0, 125]
    assert choose_frames(timeline, num_frames=10, max_frames=5) == [0, 50, 100, 150, 200]


def test_more_frames_than_anyone_can_want():
    timeline = steady(100, 25)
    for fps in (1e6, 1e9, 1e300):
        with pytest.raises(ValueError, match=r"fps=1e\+?\d+|fps=1000000"):
            choose_frames(timeline, fps=fps, name="clip.mp4")
        assert choose_frames(timeline, fps=fps, max_frames=4) == [0, 25, 50, 75]
    message = (
        r"fps=1000000000\.0 asks for over 1000000 frames more than the 100 that clip\.mp4 has in 4 s: fps is too high"
    )
    with pytest.raises(ValueError, match=message):
        choose_frames(timeline, fps=1e9, name="clip.mp4")
    assert choose_frames(timeline, fps=5e-324) == [0]

    # An hour, then a frame that is damaged, or the year 33658.
    stamps = np.append(steady(90000, 25).pts, 90000 * 10**12)
    damaged = Timeline(stamps, end=int(stamps[-1]) + 3600, time_base=Fraction(1, 90000))
    with pytest.raises(
        ValueError, match=r"the 90001 that the video has in 1e\+12 s.* num_frames, max_frames or an earlier"
    ):
        choose_frames(damaged, fps=1)
    assert choose_frames(damaged, fps=1, max_frames=4) == [0, 89999, 89999, 89999]
    assert choose_frames(damaged, num_frames=2) == [0, 89999]
    assert len(choose_frames(damaged)) == 90001
    assert choose_frames(damaged, fps=1, end=3600) == list(range(0, 90000, 25))

    # A frame that is there is never too many.
    long = Timeline(np.arange(3_000_000), end=3_000_000, time_base=Fraction(1, 25))
    assert len(choose_frames(long, fps=25)) == 3_000_000


def test_part_of_a_video():
    timeline = steady(100, 25, start=7200)
    assert choose_frames(timeline, fps=1, start=1) == [25, 50, 75]
    assert choose_frames(timeline, fps=1, end=2) == [0, 25]
    assert choose_frames(timeline, fps=1, start=0.5, end=2.5) == [12, 37]  # 0.5 s is halfway through frame 12
    assert choose_frames(timeline, fps=1, start=3, end=60) == [75]
    assert choose_frames(timeline, fps=1, start=3.99) == [99]
    assert choose_frames(timeline, num_frames=4, start=1, end=3) == [25, 37, 50, 62]
    assert choose_frames(timeline, start=1, end=1.2) == [25, 26, 27, 28, 29]
    assert choose_frames(timeline, fps=1, start=1, max_frames=2) == [25, 50]
    assert choose_frames(timeline, fps=2, start=0) == choose_frames(timeline, fps=2)

    slides = Timeline(np.array([0, 10_000, 12_500]), end=15_000, time_base=Fraction(1, 1000))
    assert choose_frames(slides, fps=1, start=8, end=13) == [0, 0, 1, 1, 1]

    with pytest.raises(ValueError, match=r"start=4 lies beyond the end of clip\.mp4, which lasts 4\.00 s"):
        choose_frames(timeline, fps=1, start=4, name="clip.mp4")
    for start, end in ((2, 2), (3, 2.5)):
        with pytest.raises(ValueError, match=rf"start={start} must be earlier than end={end}"):
            choose_frames(timeline, fps=1, start=start, end=end)
    with pytest.raises(ValueError, match="exceeds the 5 frames"):
        choose_frames(timeline, num_frames=6, start=1, end=1.2)


def test_a_stream_is_read_no_further_than_the_last_instant():
    taken = []

    def frames():
        for index in range(100):
            taken.append(index)
            yield 10 * index, f"frame {index}"

    shown = frames_on_screen(frames(), [0, 25, 25, 40])
    assert next(shown) == (0, "frame 0")
    assert taken == [0]
    assert list(shown) == [(20, "frame 2"), (20, "frame 2"), (40, "frame 4")]
    assert taken == [0, 1, 2, 3, 4]

    late = frames_on_screen(iter([(30, "first"), (40, "second")]), [0, 35, 90])
    assert list(late) == [(30, "first"), (30, "first"), (40, "second")]


# The same frames from every kind of file.


@pytest.mark.parametrize("fps", [1, 2.5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b_frames.mp4", {"gop_size": 25, "b_frames": 2}),
        ("no_b_frames.mp4", {"gop_size": 25, "b_frames": 0}),
        ("single_keyframe.mp4", {"gop_size": 1000}),
        ("ntsc.mp4", {"fps": Fraction(30000, 1001)}),
        ("slow.mp4", {"fps": 10}),
        ("fast.mp4", {"fps": 60}),
        ("ten_bit.mp4", {"pixel_format": "yuv420p10le"}),
        ("full_range.mp4", {"pixel_format": "yuvj420p"}),
        ("hevc.mp4", {"codec": "libx265", "gop_size": 24}),
        ("matroska.mkv", {"b_frames": 2}),
        ("ntsc.mkv", {"fps": Fraction(30000, 1001)}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("av1.mkv", {"codec": "libsvtav1"}),
        ("broadcast.ts", {"gop_size": 25}),
        ("mpeg4.avi", {"codec": "mpeg4", "b_frames": 2}),
        ("grey.mkv", {"codec": "ffv1", "pixel_format": "gray"}),
        ("alpha.mkv", {"codec": "ffv1", "pixel_format": "bgra"}),
        ("animation.gif", {"codec": "gif", "pixel_format": "rgb8"}),
    ],
)
def test_frames_and_times_are_those_of_decoding_everything(tmp_path, name, options, fps):
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {options['codec']}")
    path = write_clip(tmp_path / name, pictures(90), **options)
    pts, decoded, time_base = decode_everything(path)

    images, times, metadata = read(path, fps=fps)

    instants = [number / Fraction(fps) for number in range(len(times))]
    expected = [on_screen_at(instant, pts, time_base) for instant in instants]
    assert len(times) == int(90 / Fraction(options.get("fps", 25)) * Fraction(fps) + Fraction(1, 2))
    assert metadata.frames_indices == expected
    assert times == [float((pts[index] - pts[0]) * time_base) for index in expected]
    assert_same_frames(images, [decoded[index] for index in expected])
    assert (metadata.total_num_frames, metadata.width, metadata.height) == (90, 64, 48)
    assert metadata.video_backend == "pyav"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_variable_frame_rate_that_starts_late(tmp_path, suffix, b_frames):
    times = [10, 10.3, 10.4, 11.1, 11.2, 14.0, 14.1, 14.5, 15.9]
    path = write_clip(tmp_path / f"clip{suffix}", pictures(9), times=times, fps=10, b_frames=b_frames)
    _, decoded, _ = decode_everything(path)

    images, seconds, metadata = read(path)

    assert seconds == pytest.approx([0, 0.4, 1.2, 1.2, 4.0, 4.5], abs=1e-3)
    assert_same_frames(images, [decoded[index] for index in (0, 2, 4, 4, 5, 7)])
    assert metadata.duration == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("name", ["odd.mp4", "odd.webm"])
def test_odd_sizes(tmp_path, name):
    options = {"pixel_format": "yuv444p"} if name == "odd.mp4" else {"codec": "libvpx-vp9"}
    path = write_clip(tmp_path / name, pictures(30, height=37, width=51), **options)
    _, decoded, _ = decode_everything(path)
    images, _, _ = read(path, fps=5)
    assert images[0].shape == (3, 37, 51)
    assert_same_frames(images, decoded[::5])


def test_a_stream_without_timestamps_counts_frames(tmp_path):
    path = write_clip(tmp_path / "raw.h264", pictures(100), fps=25, b_frames=2)
    pts, decoded, _ = decode_everything(path)
    assert set(pts) == {None}

    images, times, _ = read(path)
    assert times == [0, 1, 2, 3]
    assert_same_frames(images, decoded[::25])


@pytest.mark.parametrize("seconds_back", [3, 300])
def test_streams_that_were_joined(tmp_path, seconds_back):
    """Their clocks start again; FFmpeg takes a long way back for a turn of the clock."""
    late = tmp_path / "late.ts"
    with av.open(str(write_clip(tmp_path / "a.ts", pictures(75)))) as source, av.open(str(late), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                packet.pts += (seconds_back - 3) * 90000
                packet.dts += (seconds_back - 3) * 90000
                target.mux(packet)
    second = write_clip(tmp_path / "b.ts", (255 - picture for picture in pictures(50)))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(late.read_bytes() + second.read_bytes())
    decoded = decode_everything(late)[1] + decode_everything(second)[1]
    images, times, metadata = read(joined)
    assert times == [0, 1, 2, 3, 4]
    assert metadata.total_num_frames == 125
    assert_same_frames(images, decoded[::25])


def test_one_frame_only(tmp_path):
    images, times, metadata = read(write_clip(tmp_path / "one.mp4", pictures(1)))
    assert (len(images), times, metadata.total_num_frames) == (1, [0], 1)


def test_a_stream_that_begins_between_keyframes_starts_at_its_first_decodable_frame(tmp_path):
    whole = write_clip(tmp_path / "whole.ts", pictures(150), gop_size=40, b_frames=2)
    content = whole.read_bytes()
    path = tmp_path / "tail.ts"
    path.write_bytes(content[188 * (len(content) // 188 // 6) :])
    pts, decoded, time_base = decode_everything(path)
    with av.open(str(path)) as container:
        packets = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert min(packets) < pts[0]

    images, times, metadata = read(path)
    expected = [on_screen_at(Fraction(second), pts, time_base) for second in range(len(times))]
    assert times[0] == 0
    assert metadata.frames_indices == expected
    assert_same_frames(images, [decoded[index] for index in expected])


def test_a_stream_that_says_what_it_is_only_later(tmp_path):
    """FFmpeg looks for the size of pictures in the first seconds; here it comes with the keyframe after ten."""
    whole = encode(tmp_path / "whole.ts", pictures(120), rate=5, g=50, bf=0, sc_threshold=0, keyint_min=50)
    content = whole.read_bytes()
    path = tmp_path / "tail.ts"
    path.write_bytes(content[188 * (len(content) // 188 // 20) :])
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.width == 0
    _, expected, _ = decode_everything(whole)

    images, times, metadata = read(path)

    assert times == pytest.approx(range(14))
    assert metadata.duration == pytest.approx(14)
    assert_same_frames(images, expected[50::5])
    assert float(first_frame_seconds(str(path), "tail")) == pytest.approx(first_seconds(whole) + 10)


def first_seconds(path: Path) -> float:
    pts, _, time_base = decode_everything(path)
    return float(pts[0] * time_base)


def test_two_fields_under_one_timestamp(tmp_path):
    path = write_fields(tmp_path / "broadcast.ts", 100)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.pts is None for packet in packets] == [False, True] * 100
    _, expected, _ = decode_everything(path)

    images, times, metadata = read(path)

    assert times == [0, 1, 2, 3]
    assert (metadata.total_num_frames, metadata.duration) == (100, 4)
    assert_same_frames(images, expected[::25])


def patched(path: Path, box: bytes, offset: int, content: bytes) -> Path:
    """Overwrite what stands `offset` bytes behind the name of an MP4's box."""
    data = bytearray(path.read_bytes())
    position = data.index(box) + len(box) + offset
    data[position : position + len(content)] = content
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "clockwise"),
    [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)],
)
def test_rotation_flag_is_applied(tmp_path, matrix, clockwise):
    path = write_clip(tmp_path / "clip.mp4", pictures(30))
    _, decoded, _ = decode_everything(path)
    a, b, c, d = (65536 * value for value in matrix)
    patched(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))

    images, _, metadata = read(path, fps=5)

    assert_same_frames(images, [np.rot90(picture, -clockwise) for picture in decoded[::5]])
    assert (metadata.width, metadata.height) == ((64, 48) if clockwise == 2 else (48, 64))


MIRRORS = {
    (-1, 0, 0, 1): lambda picture: picture[:, ::-1],
    (1, 0, 0, -1): lambda picture: picture[::-1],
    (0, 1, 1, 0): lambda picture: picture.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda picture: picture[::-1, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", MIRRORS)
def test_mirrored_videos(tmp_path, matrix):
    path = write_clip(tmp_path / "clip.mp4", pictures(30))
    _, decoded, _ = decode_everything(path)
    a, b, c, d = (65536 * value for value in matrix)
    patched(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))

    images, _, metadata = read(path, fps=5)

    assert_same_frames(images, [MIRRORS[matrix](picture) for picture in decoded[::5]])
    assert (metadata.width, metadata.height) == ((64, 48) if matrix[0] else (48, 64))


def test_frames_outside_an_edit_list_are_not_shown(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", pictures(100), b_frames=0)
    _, decoded, _ = decode_everything(path)
    # Of four seconds, two from the tenth frame on: (duration in milliseconds, start in 1/12800 s, speed).
    patched(path, b"elst", 8, struct.pack(">Iii", 2000, 12800 * 10 // 25, 65536))

    images, times, metadata = read(path)

    assert times == [0, 1]
    assert metadata.total_num_frames == 50
    assert_same_frames(images, [decoded[10], decoded[35]])


def test_bytes_and_paths_give_the_same(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip: one.mp4", pictures(50))
    expected, _, _ = read(path)
    monkeypatch.chdir(tmp_path)
    for source in (str(path), path.name, path.read_bytes()):
        images, times, _ = read(source)
        assert times == [0, 1]
        assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


def test_titles_in_another_encoding_are_no_obstacle(tmp_path):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        container.metadata["title"] = "Schoene Xge"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in pictures(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = (tmp_path / "clip.mkv").read_bytes().replace(b"Xge", b"\xfcge")
    assert len(read(content)[0]) == 1


@pytest.mark.parametrize(("fps", "shown", "different"), [(1, 4, 4), (50, 200, 100)])
def test_only_wanted_frames_are_converted_and_each_once(tmp_path, fps, shown, different):
    path, prepared = write_clip(tmp_path / "clip.mp4", pictures(100)), []
    with open_file(path, {"fps": fps}, prepare=lambda image: prepared.append(image) or image) as clip:
        images = [image for image, _ in clip.frames]
    assert len(images) == shown
    assert len(prepared) == 1 + different  # the first one tells how much memory pictures take
    assert len({id(image) for image in images}) == different


def test_files_are_closed_when_frames_are_abandoned(tmp_path):
    handles = Path("/proc/self/fd")
    if not handles.exists():
        pytest.skip("needs /proc to see which files are open")
    path = write_clip(tmp_path / "clip.mp4", pictures(100))

    def is_open() -> bool:
        return any(os.path.realpath(handle) == str(path.resolve()) for handle in handles.iterdir())

    opened = open_file(path, {"fps": 1})
    clip = opened.__enter__()
    next(clip.frames)
    assert is_open()
    del opened, clip
    gc.collect()
    assert not is_open()
