# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""What is said of files that are no videos, only part of one or absurd, what is kept of them, and of URLs."""

import re
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_videos import encode, pictures, read

from llama_vid.data.clips import write_clip
from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling import video_decoding_llama_vid as decoding
from llama_vid.modeling.video_decoding_llama_vid import Timeline, open_file

# Files that are no videos, or only part of one.


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"film\.mp4 does not exist"):
        read(tmp_path / "film.mp4")


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def with_index_first(path: Path) -> Path:
    """The same MP4 with its `moov` box in front, so that what is cut off is pictures."""
    target = path.with_name("index_first.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as container:
        streams = {stream: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream]
                container.mux(packet)
    return target


def sound(seconds: int) -> tuple[np.ndarray, int]:
    return np.zeros(16000 * seconds, np.float32), 16000


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder, not a video file"):
        read(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "film.mp4").touch()
    with pytest.raises(ValueError, match=r"film\.mp4 is an empty file"):
        read(tmp_path / "film.mp4")
    with pytest.raises(ValueError, match=r"<0 bytes> is empty"):
        read(b"")


@pytest.mark.parametrize("name", ["film.mp4", "film"])
def test_no_video_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match=rf"{name} could not be opened as a video") as error:
        read(path)
    assert isinstance(error.value.__cause__, av.FFmpegError)
    with pytest.raises(ValueError, match="<5120 bytes> could not be opened"):
        read(path.read_bytes())


@pytest.mark.parametrize("name", ["notes.txt", "notes.nfo"])
def test_text_that_ffmpeg_would_show(tmp_path, name):
    path = tmp_path / name
    path.write_text("Nothing to be seen here.\n" * 100)
    with pytest.raises(ValueError, match=rf"{name} is not a video: FFmpeg would show its text"):
        read(path)


def test_text_under_another_name(tmp_path):
    path = tmp_path / "notes.bin"
    path.write_text("Nothing to be seen here.\n" * 100)
    with pytest.raises(ValueError, match=r"notes\.bin could not be opened as a video: it is not a video file"):
        read(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_audio_only(tmp_path, suffix):
    with pytest.raises(ValueError, match=r"has no video stream \(it holds: audio\)"):
        read(audio_only(tmp_path / f"song{suffix}"))


def test_cover_picture_is_no_video(tmp_path):
    audio_only(tmp_path / "song.mp4")
    Image.new("RGB", (64, 48)).save(tmp_path / "cover.png")
    path = tmp_path / "song_with_cover.mp4"
    with (
        av.open(str(tmp_path / "song.mp4")) as song,
        av.open(str(tmp_path / "cover.png")) as cover,
        av.open(str(path), "w") as container,
    ):
        streams = [container.add_stream_from_template(source.streams[0]) for source in (song, cover)]
        streams[1].disposition = av.stream.Disposition.attached_pic.value
        for source, stream in zip((song, cover), streams, strict=True):
            for packet in source.demux():
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    with av.open(str(path)) as container:
        assert {stream.type for stream in container.streams} == {"audio", "video"}
    with pytest.raises(ValueError, match="has no video stream"):
        read(path)


def test_unknown_codec(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(10))
    content = path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_UNKNOWN/CODEC")
    with pytest.raises(ValueError, match=r"cannot decode"):
        read(content)


def test_mp4_without_index(tmp_path):
    path = cut(write_clip(tmp_path / "film.mp4", pictures(100)), 0.5)
    with pytest.raises(ValueError, match=r"film\.mp4 could not be opened .* cut off before its index"):
        read(path)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("with_sound", [False, True])
def test_mp4_cut_in_its_pictures(tmp_path, share, with_sound):
    clip = write_clip(tmp_path / "film.mp4", pictures(200), audio=sound(8) if with_sound else None)
    path = cut(with_index_first(clip), share)
    with pytest.raises(ValueError, match=r"index_first\.mp4 is cut off: it ends after \d+ frames, \d\.\d\d s"):
        read(path)


# WebM takes no AAC.
@pytest.mark.parametrize(("name", "with_sound"), [("film.mkv", False), ("film.mkv", True), ("film.webm", False)])
def test_matroska_cut_off(tmp_path, name, with_sound):
    codec = "libvpx-vp9" if name == "film.webm" else "libx264"
    clip = write_clip(tmp_path / name, pictures(200), codec=codec, audio=sound(8) if with_sound else None)
    with pytest.raises(ValueError, match="is cut off"):
        read(cut(clip, 0.6))
    with pytest.raises(ValueError, match=r"^<\d+ bytes> is cut off"):
        read(clip.read_bytes())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("seconds", [1, 8])
def test_sound_of_another_length_is_no_sign_of_a_cut(tmp_path, suffix, seconds):
    path = write_clip(tmp_path / f"clip{suffix}", pictures(100), audio=sound(seconds))
    assert read(path)[1] == [0, 1, 2, 3]


def test_a_last_frame_that_stays_long_is_no_sign_of_a_cut(tmp_path):
    path = write_clip(tmp_path / "slides.mkv", pictures(3), times=[0, 4, 8], fps=0.25)
    assert read(path)[1] == [0] * 4 + [4] * 4 + [8] * 4


def test_header_without_pictures(tmp_path):
    path = with_index_first(write_clip(tmp_path / "film.mp4", pictures(100)))
    content = path.read_bytes()
    with pytest.raises(ValueError, match="holds no video frames"):
        read(content[: content.index(b"mdat") + 4])


def with_a_packet_of_zeros(path: Path, number: int) -> Path:
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
    content = bytearray(path.read_bytes())
    start = content.index(bytes(packet), packet.pos)  # in Matroska it has a header
    content[start : start + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    return path


def test_damage_in_the_middle(tmp_path):
    whole = write_clip(tmp_path / "film.mov", pictures(100), codec="png", pixel_format="rgb24")
    path = with_a_packet_of_zeros(whole, 50)
    with open_file(path, {"fps": 1}) as clip:
        assert [next(clip.frames)[1] for _ in range(2)] == [0, 1]
        with pytest.raises(ValueError, match=r"film\.mov is damaged: decoding failed 1\.96 s after its start") as error:
            next(clip.frames)
    assert isinstance(error.value.__cause__, av.FFmpegError)


def test_no_frame_can_be_decoded(tmp_path):
    path = write_clip(tmp_path / "film.mov", pictures(10), codec="png", pixel_format="rgb24")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for packet in packets:
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    with pytest.raises(ValueError, match="is damaged: decoding failed at its first frame") as error:
        read(bytes(content))
    assert "on_error" not in str(error.value)


def test_a_decoder_that_stops_early_is_noticed(tmp_path):
    path = write_clip(tmp_path / "film.mkv", pictures(50))
    announced = Timeline(np.arange(0, 8040, 40), end=8040, time_base=Fraction(1, 1000))
    with av.open(str(path)) as container:
        frames = decoding.decode(container, announced, "film.mkv")
        assert [next(frames)[0] for _ in range(50)] == list(range(0, 2000, 40))
        with pytest.raises(
            ValueError, match=r"film\.mkv is damaged: the last .* 1\.96 s after its start, .* until 8\.00 s"
        ):
            next(frames)


# What is kept of them.


def kept(path: Path, threads: int, **rule):
    with open_file(path, {"fps": 5, **rule}, on_error="keep", threads=threads) as clip:
        frames = list(clip.frames)
    return [image for image, _ in frames], [seconds for _, seconds in frames]


def shown_at(path: Path, is_gone) -> float:
    """When the first frame is shown whose packet is gone, in seconds after the first frame of all."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    first = min(packet.pts for packet in packets)
    return float((min(packet.pts for packet in packets if is_gone(packet)) - first) * packets[0].time_base)


def check_kept(whole: Path, damaged: Path, gone: float, caplog) -> None:
    """What is kept is what the whole file gives, up to a second before the frame that is `gone`; and that is said."""
    for rule in ({"fps": 5}, {"fps": None}):
        expected, expected_times, _ = read(whole, **rule)
        for threads in (1, 3):
            caplog.clear()
            images, times = kept(damaged, threads, **rule)
            assert times == expected_times[: len(times)]
            assert all(torch.equal(*pair) for pair in zip(images, expected, strict=False))
            assert gone - 1 <= times[-1] < gone
            (record,) = caplog.records
            assert record.levelname == "WARNING"
            assert damaged.name in record.message
            assert f"{len(times)} frames from before that are kept" in record.message


TORN = {
    "b_frames.mp4": {"g": 20, "bf": 3},
    "no_b_frames.mp4": {"g": 20, "bf": 0},
    "b_frames.mkv": {"g": 20, "bf": 3},
    "no_b_frames.mkv": {"g": 20, "bf": 0},
    "hevc.mp4": {"codec": "libx265", "x265-params": "keyint=20:bframes=4:log-level=none"},
    "hevc.mkv": {"codec": "libx265", "x265-params": "keyint=20:bframes=4:log-level=none"},
    "mpeg4.mp4": {"codec": "mpeg4", "bf": 2},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 20, "deadline": "realtime", "cpu-used": 8},
}


@pytest.mark.parametrize("name", TORN)
@pytest.mark.parametrize("share", [0.5, 0.63, 0.71])
def test_what_precedes_a_cut_is_kept(tmp_path, caplog, name, share):
    """Without frames in front of which others are missing, and without the half one: MPEG-4 would show it."""
    if TORN[name].get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {TORN[name]['codec']}")
    check_torn(encode(tmp_path / name, pictures(200), **TORN[name]), share, caplog)


def check_torn(whole: Path, share: float, caplog) -> None:
    whole = with_index_first(whole) if whole.suffix == ".mp4" else whole
    torn = whole.with_name(f"torn{whole.suffix}")
    torn.write_bytes(whole.read_bytes())
    length = cut(torn, share).stat().st_size
    check_kept(whole, torn, shown_at(whole, lambda packet: packet.pos + packet.size > length), caplog)


def test_a_frame_that_the_decoder_does_not_give(tmp_path, caplog):
    """MPEG-4's holds one back, in several threads for good if the next packet is too short to be one."""
    whole = with_index_first(encode(tmp_path / "film.mp4", pictures(100), codec="mpeg4", bf=2, g=50))
    with av.open(str(whole)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.pts > packet.dts > 0)
    path = tmp_path / "torn.mp4"
    path.write_bytes(whole.read_bytes()[: packet.pos + 2])
    images, times = kept(path, 1, fps=None)
    expected, expected_times, _ = read(whole, fps=None)
    assert 0 < len(times) <= packet.dts * 25 * packet.time_base
    assert times == expected_times[: len(times)]
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=False))
    assert f"{len(times)} frames from before that are kept" in caplog.text


def test_frames_of_any_length_in_front_of_a_cut(tmp_path, caplog):
    pts = (250 + np.cumsum(np.random.default_rng(1).choice([1, 1, 2, 3, 9], size=200))).tolist()
    for b_frames in (0, 3):
        for suffix in (".mp4", ".mkv"):
            whole = encode(tmp_path / f"whole{suffix}", pictures(200), rate=50, pts=pts, g=20, bf=b_frames)
            check_torn(whole, 0.6, caplog)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.mov", "film.webm"])
def test_what_precedes_damage_is_kept(tmp_path, caplog, name):
    h264 = {"g": 20, "bf": 2, "x264-params": "scenecut=0"}
    options = {"film.mov": {"codec": "png", "pixel_format": "rgb24"}, "film.webm": TORN["vp9.webm"]}
    whole = encode(tmp_path / f"whole_{name}", pictures(100), **options.get(name, h264))
    path = tmp_path / name
    path.write_bytes(whole.read_bytes())
    check_kept(whole, with_a_packet_of_zeros(path, 40), 1.6, caplog)


def test_a_demuxer_that_fails(tmp_path, monkeypatch, caplog):
    whole = write_clip(tmp_path / "film.mp4", pictures(100), gop_size=20, b_frames=0)
    expected, _, _ = read(whole, fps=5)

    class Failing(decoding.PacketIndex):
        def add(self, packet):
            super().add(packet)
            if len(self.pts) == 60:
                raise av.InvalidDataError(1, "of the test")

    monkeypatch.setattr(decoding, "PacketIndex", Failing)
    with pytest.raises(ValueError, match=r"film\.mp4 cannot be read to its end: .* of the test") as error:
        read(whole)
    assert isinstance(error.value.__cause__, av.FFmpegError)
    images, times = kept(whole, 1)
    assert times == pytest.approx([0.2 * number for number in range(12)])
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=False))
    assert "12 frames from before that are kept" in caplog.text


def test_what_is_kept_ends_where_it_could_not_be_read(tmp_path):
    """So that words from after the damage do not pile up behind the last frame."""
    path = with_a_packet_of_zeros(encode(tmp_path / "film.mkv", pictures(500), g=20, bf=2), 100)
    with open_file(path, {"fps": 1}, on_error="keep") as clip:
        assert clip.metadata.duration == 20  # as announced
        frames = list(clip.frames)
    assert clip.metadata.duration == len(frames)
    assert 3 <= len(frames) <= 4


def test_a_clock_that_begins_again_soon(tmp_path):
    """MPEG-TS counts to 2 ** 33; FFmpeg lets what comes shortly before that begin below zero."""
    path = tmp_path / "film.ts"
    with av.open(str(path), "w", options={"mpegts_copyts": "1"}) as container:
        stream = container.add_stream("libx264", rate=5, options={"g": "10", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90000)
        for number, picture in enumerate(pictures(100)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (1 << 33) - 900000 + 18000 * number, Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.start_time < 0
    assert read(path)[1] == pytest.approx(range(20))


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_the_processor_keeps_what_it_says(tmp_path, caplog, damage):
    whole = write_clip(tmp_path / "film.mp4", pictures(200), gop_size=20, b_frames=2)
    path = with_index_first(whole)
    path = cut(path, 0.6) if damage == "cut" else with_a_packet_of_zeros(path, 100)
    processor = LlamaVidVideoProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    expected = processor(whole, return_metadata=True)

    for reading in (lambda: processor(path), lambda: list(processor.iter_chunks(path))):
        with pytest.raises(ValueError, match=r'takes what comes before that with on_error="keep"'):
            reading()
    assert not caplog.records

    batch = processor([path, whole], on_error="keep", return_metadata=True)
    (count, all_of_the_other), metadata = batch["video_num_frames"].tolist(), batch["video_metadata"][0]
    assert 3 <= count < all_of_the_other == 8
    assert torch.equal(batch["pixel_values_videos"][:count], expected["pixel_values_videos"][:count])
    assert torch.equal(batch["pixel_values_videos"][count:], expected["pixel_values_videos"])
    assert metadata.timestamps == expected["video_metadata"][0].timestamps[:count]
    assert metadata.frames_indices == expected["video_metadata"][0].frames_indices[:count]
    (record,) = caplog.records
    assert f"{count} frames from before that are kept" in record.message

    chunks = list(processor.iter_chunks(path, on_error="keep", chunk_size=2))
    assert torch.equal(torch.cat([pixels for pixels, _ in chunks]), expected["pixel_values_videos"][:count])
    assert torch.cat([times for _, times in chunks]).tolist() == metadata.timestamps


def test_nothing_from_before_the_damage_is_an_error(tmp_path):
    path = with_index_first(write_clip(tmp_path / "film.mp4", pictures(100)))
    content = path.read_bytes()
    for end in (content.index(b"mdat") + 4, content.index(b"mdat") + 500):
        with pytest.raises(ValueError, match=r"holds no video frames|decoding failed at its first") as error:
            kept(content[:end], 1)
        assert "on_error" not in str(error.value)
    with pytest.raises(ValueError, match="cut off before its index"):
        kept(write_clip(tmp_path / "film.mp4", pictures(100)).read_bytes()[:2000], 1)

    # Half of the first frame, of which this decoder would make a whole one.
    path = with_index_first(write_clip(tmp_path / "film.mp4", pictures(100), codec="mpeg4"))
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
    with pytest.raises(ValueError, match="holds no video frames"):
        kept(path.read_bytes()[: first.pos + first.size // 2], 1)

    whole = write_clip(tmp_path / "film.mov", pictures(100), codec="png", pixel_format="rgb24")
    with pytest.raises(ValueError, match=r"decoding failed 1\.96 s after its start.* No frame from before that was"):
        kept(with_a_packet_of_zeros(whole, 50), 1, start=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "skip"}, "on_error must be one of raise, keep, got 'skip'"),
        ({"video_backend": "decord"}, "video_backend must be one of pyav, torchcodec, got 'decord'"),
    ],
)
def test_options_that_do_not_exist(tmp_path, options, message):
    path = write_clip(tmp_path / "clip.mp4", pictures(3))
    with pytest.raises(ValueError, match=message), open_file(path, {"fps": 1}, **options):
        pass
    with pytest.raises(ValueError, match=message):
        LlamaVidVideoProcessor()(path, **options)
    with pytest.raises(ValueError, match=message):
        next(LlamaVidVideoProcessor().iter_chunks(path, **options))


# Absurd headers.


def gif_of_size(path: Path, width: int, height: int) -> Path:
    content = bytearray(encode(path, pictures(3), codec="gif", pixel_format="rgb8").read_bytes())
    content[6:10] = struct.pack("<HH", width, height)
    path.write_bytes(content)
    return path


def with_png_of_size(path: Path, number: int, width: int, height: int) -> Path:
    """A video of PNG images, the header of one of which says another size."""
    content = bytearray(encode(path, pictures(50), codec="png", pixel_format="rgb24").read_bytes())
    position = -1
    for _ in range(number + 1):
        position = content.index(b"IHDR", position + 1)
    content[position + 4 : position + 12] = struct.pack(">II", width, height)
    content[position + 17 : position + 21] = struct.pack(">I", zlib.crc32(content[position : position + 17]))
    path.write_bytes(content)
    return path


class Bits:
    """Numbers as H.264 writes them: `u` in so many bits, `ue` in as many as it takes."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, bits: int, *values: int) -> "Bits":
        self.text += "".join(format(value, f"0{bits}b") for value in values)
        return self

    def ue(self, *values: int) -> "Bits":
        for value in values:
            self.u(2 * (value + 1).bit_length() - 1, value + 1)
        return self

    def unit(self, header: int) -> bytes:
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return b"\0\0\0\1" + bytes([header]) + int(text, 2).to_bytes(len(text) // 8, "big")


def h264_of_size(path: Path, width: int, height: int) -> Path:
    """Raw H.264 whose frames, nothing but noise, are said to be that large."""
    size = Bits().u(8, 66, 0, 51).ue(0, 0, 2, 1).u(1, 0).ue(width // 16 - 1, height // 16 - 1).u(1, 1, 0, 0, 0)
    parameters = Bits().ue(0, 0).u(1, 0, 0).ue(0, 0, 0).u(1, 0).u(2, 0).ue(0, 0, 0).u(1, 0, 0, 0)
    slices = [Bits().ue(0, 7, 0).u(4, 0).ue(number % 2).u(1, 0, 0).ue(0).u(8, *range(128, 256)) for number in range(9)]
    units = [unit for picture in slices for unit in (size.unit(0x67), parameters.unit(0x68), picture.unit(0x65))]
    path.write_bytes(b"".join(units))
    return path


@pytest.fixture
def little_memory():
    """Fails if the process comes to hold 200 MB more than before."""
    resource = pytest.importorskip("resource", reason="needs Unix to see how much memory is used")
    kilobytes = 1 if sys.platform == "linux" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / kilobytes < 200_000


@pytest.mark.parametrize("size", [(16_000, 16_000), (8208, 8192)])
def test_a_size_that_is_absurd(tmp_path, little_memory, size):
    width, height = size
    message = f"claims frames of {width} x {height} pixels, more than 67108864: .* scaled down"
    path = h264_of_size(tmp_path / "film.h264", *size)
    with pytest.raises(ValueError, match=r"film\.h264 " + message):
        read(path)
    for name in ("film.ts", "film.mp4", "film.mkv"):
        with decoding.open_container(str(path), "film") as source, av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for number, packet in enumerate(packet for packet in source.demux() if packet.size):
                packet.stream, packet.pts, packet.dts = stream, 40 * number, 40 * number
                container.mux(packet)
        with pytest.raises(ValueError, match=name + " " + message):
            read(tmp_path / name)


@pytest.mark.parametrize("size", [(16_000, 16_000), (30_000, 30_000), (65_535, 65_535)])
def test_a_size_that_is_found_while_decoding(tmp_path, little_memory, size):
    with pytest.raises(ValueError, match=r"film\.gif is damaged: .* A frame claims more than 67108864 pixels"):
        read(gif_of_size(tmp_path / "film.gif", *size))


@pytest.mark.parametrize("size", [(16_000, 16_000), (9000, 8000)])
def test_a_size_that_becomes_absurd(tmp_path, little_memory, caplog, size):
    path = with_png_of_size(tmp_path / "film.mov", 30, *size)
    with open_file(path, {"fps": 5}) as clip:
        assert [next(clip.frames)[1] for _ in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        with pytest.raises(ValueError, match=r"failed 1\.16 s after .* A frame claims more than 67108864 pixels"):
            list(clip.frames)
    _, times = kept(path, 1)
    assert times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert "claims more than" in caplog.text


@pytest.mark.parametrize("threads", [1, 3])
def test_a_size_that_becomes_absurd_between_groups(tmp_path, monkeypatch, threads):
    """Two films in one, the second of which is larger than allowed."""
    contents = [encode(tmp_path / "part.ts", pictures(50, 48 * n, 64 * n), g=25).read_bytes() for n in (1, 4)]
    path = tmp_path / "film.ts"
    path.write_bytes(b"".join(contents))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 48)
    with pytest.raises(ValueError, match=r"film\.ts is damaged"):
        read(path, threads=threads)


@pytest.mark.parametrize("nanoseconds", [0, 1])
def test_a_rate_of_the_header_is_not_believed(tmp_path, nanoseconds):
    path = encode(tmp_path / "clip.mkv", pictures(50))
    expected, times, _ = read(path)
    duration = b"\x23\xe3\x83\x84" + struct.pack(">I", 40_000_000)  # DefaultDuration, of four bytes
    assert path.read_bytes().count(duration) == 1
    images, found, metadata = read(path.read_bytes().replace(duration, duration[:4] + struct.pack(">I", nanoseconds)))
    assert (found, metadata.fps) == (times, 25)
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


@pytest.mark.parametrize("rate", [10**9, 2**31 - 1])
def test_frames_that_follow_each_other_in_no_time(tmp_path, rate):
    images, times, metadata = read(encode(tmp_path / "clip.mp4", pictures(20), rate=rate))
    assert (len(images), times) == (1, [0])
    assert metadata.total_num_frames == 20
    assert metadata.fps == pytest.approx(rate, rel=0.1)
    assert len(read(tmp_path / "clip.mp4", num_frames=5)[0]) == 5


@pytest.mark.parametrize("seconds", [10**9, 10**12])
def test_timestamps_that_are_absurd(tmp_path, seconds):
    path = encode(tmp_path / "clip.mkv", pictures(3), rate=1, pts=[0, 1, seconds], bf=0)
    message = r"fps=1 asks for over 1000000 frames more than the 3 that .*clip\.mkv has in "
    message += re.escape(f"{seconds:.6g} s: ") + ".* Pass num_frames, max_frames or an earlier end"
    with pytest.raises(ValueError, match=message):
        read(path)
    assert read(path, max_frames=4)[1] == [0, 1, 1, 1]
    assert read(path, num_frames=3)[1] == [0, 1, seconds]
    assert read(path, end=4)[1] == [0, 1, 1, 1]
    assert read(path, fps=None)[1] == [0, 1, seconds]
