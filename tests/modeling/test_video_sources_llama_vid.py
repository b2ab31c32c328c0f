# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Files that change while they are read, and URLs."""

import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_videos import encode, pictures, read

from llama_vid.data.clips import write_clip
from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling import video_sources_llama_vid as sources
from llama_vid.modeling.image_files_llama_vid import read_image
from llama_vid.modeling.video_decoding_llama_vid import open_file

CODECS = {"clip.mp4": {"g": 20}, "clip.mkv": {"g": 20}, "mpeg4.mp4": {"codec": "mpeg4", "bf": 2}, "clip.ts": {"g": 20}}


def film(path: Path, seconds: int = 8) -> Path:
    return encode(path, pictures(25 * seconds), **CODECS[path.name])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(1000))


def replace(path: Path) -> None:
    """By another film, under the same name."""
    new = path.with_suffix(".new")
    new.write_bytes(encode(path.with_name(f"other_{path.name}"), reversed(list(pictures(100)))).read_bytes())
    os.replace(new, path)


def overwrite(path: Path) -> None:
    """In place, and by as many bytes."""
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-2000] + content[-3000:-1000])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def grow_at_once(path: Path) -> None:
    """So soon after the last change that its time is the same."""
    status = path.stat()
    grow(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = [truncate, grow, grow_at_once, replace, overwrite, os.remove]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "mpeg4.mp4"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("frames_before", [0, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_change_is_an_error(tmp_path, name, change, frames_before, threads):
    path = film(tmp_path / name)
    for on_error in ("raise", "keep"):
        content = path.read_bytes()
        with open_file(path, {"fps": 5}, on_error=on_error, threads=threads) as clip:
            for _ in range(frames_before):
                next(clip.frames)
            change(path)
            with pytest.raises(
                ValueError, match=rf"{name} changed while it was read: read it again when it is complete"
            ):
                list(clip.frames)
        path.write_bytes(content)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_an_error_of_the_processor_too(tmp_path, change):
    path = film(tmp_path / "clip.mp4")
    processor = LlamaVidVideoProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    with processor.open(path, chunk_size=2) as reader:
        next(reader.chunks)
        change(path)
        with pytest.raises(ValueError, match=r"clip\.mp4 changed while it was read"):
            list(reader.chunks)


def test_a_change_during_preprocess(tmp_path, monkeypatch):
    path = film(tmp_path / "clip.mp4")
    crop = LlamaVidVideoProcessor.center_crop

    def crop_and_change(*args):
        grow(path)
        return crop(*args)

    monkeypatch.setattr(LlamaVidVideoProcessor, "center_crop", crop_and_change)
    with pytest.raises(ValueError, match=r"clip\.mp4 changed while it was read"):
        LlamaVidVideoProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})(path)


@pytest.mark.parametrize("on_error", ["raise", "keep"])
def test_a_recording_that_goes_on(tmp_path, on_error):
    """What is there is read as long as nothing is added to it meanwhile."""
    content = film(tmp_path / "clip.ts").read_bytes()
    path = tmp_path / "recording.ts"
    path.write_bytes(content[: 188 * (len(content) // 188 // 2)])
    assert len(read(path)[0]) >= 3
    with open_file(path, {"fps": 1}, on_error=on_error) as clip:
        next(clip.frames)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"recording\.ts changed while it was read"):
            list(clip.frames)
    assert len(read(path)[0]) == 8


def test_what_is_not_read_to_its_end_may_change(tmp_path):
    path = film(tmp_path / "clip.mp4")
    with open_file(path, {"fps": 1}) as clip:
        assert next(clip.frames)[1] == 0
        truncate(path)


def test_bytes_and_files_that_stay_as_they_are(tmp_path):
    path = film(tmp_path / "clip.mp4")
    expected, _, _ = read(path)
    with open_file(path.read_bytes(), {"fps": 1}) as clip:
        truncate(path)
        images = [image for image, _ in clip.frames]
    assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


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


def test_image_url(tmp_path, downloads):
    picture = next(iter(pictures(1)))
    Image.fromarray(picture).save(tmp_path / "a.png")
    with answering(reply((tmp_path / "a.png").read_bytes())) as address:
        assert np.array_equal(read_image(f"{address}/a.png?size=small"), picture)
    assert list(downloads.iterdir()) == []


def test_url(tmp_path, downloads):
    path = write_clip(tmp_path / "clip.mp4", pictures(50))
    expected, _, _ = read(path)
    for length in (None, path.stat().st_size):
        with answering(reply(path.read_bytes(), length=length)) as address:
            images, times, _ = read(f"{address}/clip.mp4?size=small")
        assert times == [0, 1]
        assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))
    assert list(downloads.iterdir()) == []


def test_url_in_other_letters(tmp_path, downloads):
    path, asked = write_clip(tmp_path / "clip.mp4", pictures(50)), []

    def answer(request):
        asked.append(request.path)
        reply(path.read_bytes())(request)

    with answering(answer) as address:
        assert read(f"{address}/фильм (1).mp4?of=été")[1] == [0, 1]
    assert asked == ["/%D1%84%D0%B8%D0%BB%D1%8C%D0%BC%20(1).mp4?of=%C3%A9t%C3%A9"]
    assert sources.in_ascii("https://köln.example/a?b=c#d") == "https://xn--kln-sna.example/a?b=c"
    assert sources.in_ascii("https://example.org/a%20b#c") == "https://example.org/a%20b#c"
    assert sources.in_ascii("https://example.org/a b.mp4?c=d e") == "https://example.org/a%20b.mp4?c=d%20e"


@pytest.mark.parametrize("length", [None, 2000])
def test_url_that_is_too_large(downloads, monkeypatch, length):
    monkeypatch.setattr(sources, "URL_MAX_BYTES", 1000)
    with answering(reply(bytes(2000), length=length)) as address:
        for reading in (read, read_image):
            with pytest.raises(ValueError, match="larger than 1000"):
                reading(f"{address}/film.mp4")
    assert list(downloads.iterdir()) == []


def test_url_that_never_ends(downloads, monkeypatch):
    monkeypatch.setattr(sources, "URL_MAX_SECONDS", 0)
    with answering(reply(bytes(10))) as address, pytest.raises(ValueError, match="took more than 0 s"):
        read(f"{address}/film.mp4")


def test_url_that_is_silent(downloads, monkeypatch):
    monkeypatch.setattr(sources, "URL_TIMEOUT", 0.05)
    finished = threading.Event()
    with answering(lambda request: finished.wait(10)) as address:
        for reading in (read, read_image):
            with pytest.raises(ValueError, match=r"could not be downloaded: .*timed out"):
                reading(f"{address}/film.mp4")
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


def test_url_whose_length_is_no_number(downloads):
    message = r"http://.*/film\.mp4 could not be downloaded: .*'abc'"
    with answering(reply(bytes(10), length="abc")) as address, pytest.raises(ValueError, match=message):
        read(f"{address}/film.mp4")


@pytest.mark.parametrize("url", ["http://[foo/", "http://é..com/a.mp4", "http://host:port/"])
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match=f"^{re.escape(url)} could not be downloaded: "):
        read(url)


def test_messages_hold_no_secrets(downloads):
    with answering(reply(b"", status=404)) as address:
        host = address.removeprefix("http://")
        for url in (f"http://alice:hunter2@{host}/a.mp4", f"http://{host}/a.mp4?token=hunter2#hunter2"):
            for reading in (read, read_image):
                with pytest.raises(ValueError, match=f"http://{host}/a.mp4") as error:
                    reading(url)
                assert "hunter2" not in str(error.value)


def test_redirects_stay_with_http(downloads):
    def answer(request):
        request.send_response(302)
        request.send_header("Location", "ftp://127.0.0.1/film.mp4")
        request.end_headers()

    with answering(answer) as address, pytest.raises(ValueError, match="ftp"):
        read(f"{address}/film.mp4")


@pytest.mark.parametrize(
    "url", ["ftp://host/film.mp4", "rtsp://host/film", "file:///film.mp4", "data:video/mp4;base64," + 999 * "A"]
)
def test_other_protocols(url):
    with pytest.raises(ValueError, match=r"^.{1,200}: only http and https"):
        read(url)


def test_playlists_open_no_connections(tmp_path):
    with answering(lambda request: pytest.fail("the playlist was followed")) as address:
        path = tmp_path / "list.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\n{address}/part.ts\n#EXT-X-ENDLIST\n")
        with pytest.raises(ValueError, match="could not be opened"):
            read(path)
