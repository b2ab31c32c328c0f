# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Image files, wherever they are, as PIL reads them: upright and in RGB, whatever the version of transformers."""

import base64
import io
import os
import re

import PIL.Image
import PIL.ImageOps

from .video_frames_llama_vid import check_eight_bits
from .video_sources_llama_vid import is_url, local_source, source_name

# For these PIL starts other programs (Ghostscript), or lets the system draw what the file says.
PROGRAMS = ("EPS", "WMF")


def read_image(source: str | bytes, name: str | None = None) -> PIL.Image.Image:
    """
    Read an image.

    Args:
        source (`str` or `bytes`):
            A path, an http(s) URL, which is downloaded within the limits of videos, base64 (`data:image/…` too), or a
            file's content.
        name (`str`, *optional*): What to call it in messages.

    Raises:
        ValueError: It cannot be read, or has more than 8 bits a channel.
    """
    name = name or f"Image {source_name(source)[:200]!r}"
    if not isinstance(source, bytes) and is_url(source):
        with local_source(source) as path:
            return read_image(path, name)
    try:
        if isinstance(source, str) and not os.path.isfile(source):
            source = base64.decodebytes(re.sub(r"^data:image/[^,]*,", "", source).encode())
        image = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
        image.load()
    except Exception as error:  # decoders and damaged files raise of every kind
        raise ValueError(f"{name} cannot be read: check that it exists and is an image file.") from error
    check_eight_bits(image, name)
    return PIL.ImageOps.exif_transpose(image).convert("RGB")


def _formats() -> list[str]:
    PIL.Image.init()
    return [name for name in PIL.Image.ID if name not in PROGRAMS]
