# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Where videos come from: paths, URLs and bytes to what FFmpeg can open."""

import http.client
import os
import re
import string
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

URL_TIMEOUT = 30.0  # seconds without any data
URL_MAX_SECONDS = 1800.0  # for the whole download
URL_MAX_BYTES = 2 * 1024**3


class DamagedVideoError(ValueError):
    """A file that can be read up to some place, and not from there on. Its argument says which, and what is wrong."""

    def __str__(self) -> str:
        return f'{self.args[0]} The video processor takes what comes before that with on_error="keep".'


def source_name(video: Any) -> str:
    """What messages call a file: its path or URL, or how many bytes there are."""
    return f"<{len(video)} bytes>" if isinstance(video, bytes) else without_secrets(str(video))


def is_url(name: str) -> bool:
    """Whether it is an address that can be downloaded."""
    return re.match(r"https?://", name, re.IGNORECASE) is not None


def without_secrets(name: str) -> str:
    """An address as messages have it: who asks, and with what key, is in none. Paths stay as they are."""
    return re.sub(r"^(https?://)(?:[^/?#]*@)?([^?#]*).*", r"\1\2", name, flags=re.IGNORECASE | re.DOTALL)


@contextmanager
def local_source(video: str | os.PathLike | bytes) -> Iterator[str | bytes]:
    """
    What PyAV can open: an absolute path or bytes. A URL is downloaded to a temporary file, which is removed on leaving.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A folder, an empty file, a URL that is not http(s) or cannot be downloaded.
    """
    name = source_name(video)
    if isinstance(video, bytes):
        if not video:
            raise ValueError("The video <0 bytes> is empty. Pass the whole content of a video file.")
        yield video
    elif is_url(str(video)):
        with tempfile.TemporaryDirectory(prefix="llama-vid-") as folder:
            path = os.path.join(folder, "video")
            download(str(video), path)
            yield path
    elif re.match(r"[a-z][a-z0-9+.-]*://|data:", name, re.IGNORECASE):
        raise ValueError(f"{name[:200]}: only http and https URLs are read. Pass a file's path, or its bytes.")
    else:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"Video file {name} does not exist (looked in {path.absolute().parent}).")
        if path.is_dir():
            raise ValueError(f"{name} is a folder, not a video file. Pass the path of one video file.")
        if path.stat().st_size == 0:
            raise ValueError(f"{name} is an empty file, not a video. Copy or download it again.")
        # Absolute, because FFmpeg would take the `a:` of a relative name for a protocol.
        yield str(path.absolute())


def size_and_time(source: str | bytes) -> tuple[int, int] | None:
    """What tells whether a file is still as it was: bytes, and ns of its last change. None if it is gone, or bytes."""
    try:
        status = None if isinstance(source, bytes) else os.stat(source)
    except FileNotFoundError:
        status = None
    return status and (status.st_size, status.st_mtime_ns)


def unchanged(frames: Generator, source: str | bytes, name: str, before: tuple[int, int] | None) -> Iterator:
    """
    The frames. What was noted of a file's packets says nothing of another file's: raises ValueError in the end, or
    instead of what is wrong with a frame, if `size_and_time` is not as `before`.
    """
    changed = f"{name} changed while it was read: read it again when it is complete, or pass a copy."
    with closing(frames):
        try:
            yield from frames
        except ValueError as error:
            if size_and_time(source) != before:
                raise ValueError(changed) from error
            raise
    if size_and_time(source) != before:
        raise ValueError(changed)


def in_ascii(url: str) -> str:
    """What browsers send for an address in other letters, or with spaces."""
    if url.isascii() and " " not in url:
        return url
    parts = urllib.parse.urlsplit(url)
    path, query = (urllib.parse.quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return parts._replace(netloc=parts.netloc.encode("idna").decode(), path=path, query=query, fragment="").geturl()


def download(url: str, path: str) -> None:
    """
    Stream `url` to the file `path`.

    Raises:
        ValueError: The server cannot be reached, refuses, stops halfway or is silent for `URL_TIMEOUT` seconds; more
            than `URL_MAX_BYTES` bytes or `URL_MAX_SECONDS` seconds; no address, or one with a user's name in it.
    """
    name = without_secrets(url)
    if re.match(r"https?://[^/?#]*@", url, re.IGNORECASE):
        raise ValueError(f"{name} was given with a user's name, which is not sent: download it, and pass a local file.")
    # Not `build_opener`: its redirects may lead to ftp.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    advice = "Download it yourself and pass its path."
    deadline, size, is_late = time.monotonic() + URL_MAX_SECONDS, 0, False
    try:
        request = urllib.request.Request(in_ascii(url), headers={"User-Agent": "llama-vid"})
        with opener.open(request, timeout=URL_TIMEOUT) as response, open(path, "wb") as file:
            promised = int(response.headers.get("Content-Length", 0))
            while max(size, promised) <= URL_MAX_BYTES and not is_late and (block := response.read1(1 << 20)):
                size += len(block)
                is_late = time.monotonic() > deadline
                file.write(block)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        raise ValueError(
            f"{name} could not be downloaded: {error}. Check the address, or pass a local file."
        ) from error
    if max(size, promised) > URL_MAX_BYTES:
        raise ValueError(f"{name} is larger than {URL_MAX_BYTES} bytes. {advice}")
    if is_late:
        raise ValueError(f"{name} took more than {URL_MAX_SECONDS:g} s to download. {advice}")
    if size < promised:
        raise ValueError(f"{name} broke off after {size} of {promised} bytes. Try again, or pass a local file.")
