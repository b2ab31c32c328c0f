# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""What is said of files that are no videos or only part of one, and of URLs."""

import threading
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_videos import pictures, read

from llama_vid.data.clips import write_clip
from llama_vid.modeling import video_decoding_llama_vid as decoding
from llama_vid.modeling import video_sources_llama_vid as sources
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


def test_playlists_open_no_connections(tmp_path):
    with answering(lambda request: pytest.fail("the playlist was followed")) as address:
        path = tmp_path / "list.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\n{address}/part.ts\n#EXT-X-ENDLIST\n")
        with pytest.raises(ValueError, match="could not be opened"):
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


def test_damage_in_the_middle(tmp_path):
    path = write_clip(tmp_path / "film.mov", pictures(100), codec="png", pixel_format="rgb24")
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][50]
    content = bytearray(path.read_bytes())
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)

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
    with pytest.raises(ValueError, match="is damaged: decoding failed at its first frame"):
        read(bytes(content))


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


# URLs.


@contextmanager
def answering(answer):
    """A web server on this machine; `answer(request)` writes each reply."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # the standard library's name
            answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> Path:
    """Where downloads are kept meanwhile; nothing may be left in it. The server is reached without a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "downloads"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def reply(content: bytes, *, length: int | None = None, status: int = 200):
    def answer(request):
        request.send_response(status)
        if length is not None:
            request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(content)

    return answer


def test_url(tmp_path, downloads):
    path = write_clip(tmp_path / "clip.mp4", pictures(50))
    expected, _, _ = read(path)
    for length in (None, path.stat().st_size):
        with answering(reply(path.read_bytes(), length=length)) as address:
            images, times, _ = read(f"{address}/clip.mp4?size=small")
        assert times == [0, 1]
        assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))
    assert list(downloads.iterdir()) == []


@pytest.mark.parametrize("length", [None, 2000])
def test_url_that_is_too_large(downloads, monkeypatch, length):
    monkeypatch.setattr(sources, "URL_MAX_BYTES", 1000)
    with answering(reply(bytes(2000), length=length)) as address, pytest.raises(ValueError, match="larger than 1000"):
        read(f"{address}/film.mp4")
    assert list(downloads.iterdir()) == []


def test_url_that_never_ends(downloads, monkeypatch):
    monkeypatch.setattr(sources, "URL_MAX_SECONDS", 0)
    with answering(reply(bytes(10))) as address, pytest.raises(ValueError, match="took more than 0 s"):
        read(f"{address}/film.mp4")


def test_url_that_is_silent(downloads, monkeypatch):
    monkeypatch.setattr(sources, "URL_TIMEOUT", 0.05)
    finished = threading.Event()
    with answering(lambda request: finished.wait(10)) as address:
        with pytest.raises(ValueError, match=r"could not be downloaded: .*timed out"):
            read(f"{address}/film.mp4")
        finished.set()


def test_url_that_breaks_off(downloads):
    with (
        answering(reply(bytes(500), length=2000)) as address,
        pytest.raises(ValueError, match=r"500 of 2000|IncompleteRead"),
    ):
        read(f"{address}/film.mp4")


def test_url_that_is_refused(downloads):
    with answering(reply(b"", status=404)) as address, pytest.raises(ValueError, match="404") as error:
        read(f"{address}/film.mp4")
    assert error.value.__cause__ is not None
    with pytest.raises(ValueError, match="could not be downloaded"):
        read(f"{address}/film.mp4")  # the server is gone


def test_redirects_stay_with_http(downloads):
    def answer(request):
        request.send_response(302)
        request.send_header("Location", "ftp://127.0.0.1/film.mp4")
        request.end_headers()

    with answering(answer) as address, pytest.raises(ValueError, match="ftp"):
        read(f"{address}/film.mp4")


@pytest.mark.parametrize("url", ["ftp://host/film.mp4", "rtsp://host/film", "file:///film.mp4"])
def test_other_protocols(url):
    with pytest.raises(ValueError, match="only http and https"):
        read(url)
