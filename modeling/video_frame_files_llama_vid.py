# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Videos as image files: a folder or an uncompressed .tar of frames, each read when it is looked at."""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageOps

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip")


class FrameFile(NamedTuple):
    """Where the bytes of a frame lie: `size` of them from `offset` in the file `path`, or all with a size of -1."""

    name: str
    path: str
    offset: int
    size: int


class FrameFiles:
    """
    The frames of a folder or an uncompressed .tar as a sequence of PIL images, in the natural order of their names
    (`img_2.jpg` before `img_10.jpg`). Only the names are read at first, and each frame when it is indexed.

    JPEG, PNG and WebP files count, by their suffix: of a folder those directly in it, of a .tar all, whatever their
    folders. Hidden ones are left out, and so are links and devices in a .tar; nothing is unpacked to disk.

    Args:
        video (`str` or `PathLike`): The folder, or the .tar.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No image in it; a .tar that is compressed, damaged or cut off.
    """

    def __init__(self, video: str | os.PathLike) -> None:
        self.name = str(video)
        path = os.path.abspath(video)
        files = files_of_folder(path) if os.path.isdir(path) else files_of_tar(path, self.name)
        frames = {file.name: file for file in files}  # what was added to a .tar again replaces what was there
        if not frames:
            raise ValueError(
                f"{self.name} holds no image ({', '.join(IMAGES)}). Pass a video file, or the folder or .tar of a "
                "video's frames."
            )
        self.frames = [frames[name] for name in sorted(frames, key=natural_order)]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        """One frame, upright. Raises ValueError if it cannot be decoded."""
        frame = self.frames[index]
        with open(frame.path, "rb") as file:
            file.seek(frame.offset)
            content = file.read(frame.size)
        return decode_image(content, f"Frame {frame.name} of {self.name}")


def is_frame_files(video: Any) -> bool:
    """Whether `video` is the path of an existing folder, or of a file that is an archive by its name."""
    if not isinstance(video, str | os.PathLike):
        return False
    return os.path.isdir(video) or (os.path.isfile(video) and str(video).lower().endswith((".tar", *PACKED)))


def is_image_name(name: str) -> bool:
    """By its suffix; nothing hidden, such as the `._img_1.jpg` that macOS packs beside `img_1.jpg`."""
    return name.lower().endswith(IMAGES) and not any(part.startswith(".") for part in PurePosixPath(name).parts)


def natural_order(name: str) -> tuple[str, str]:
    """A key to sort by: numbers in a name count as numbers."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].zfill(20), name), name


def files_of_folder(path: str) -> Iterator[FrameFile]:
    """The images directly in a folder."""
    with os.scandir(path) as entries:
        for entry in entries:
            if is_image_name(entry.name) and entry.is_file():
                yield FrameFile(entry.name, entry.path, 0, -1)


def files_of_tar(path: str, name: str) -> Iterator[FrameFile]:
    """
    The images of a .tar, of which the headers are read.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is compressed, damaged or cut off.
    """
    if path.lower().endswith(PACKED):
        raise ValueError(
            f"{name} is packed, but frames are read at random places. Decompress it to an uncompressed .tar, or unpack "
            "it to a folder."
        )
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                # Behind it is `archive.offset`: older Pythons go back by a negative size, and round in circles.
                if member.issparse() or not member.offset < archive.offset <= os.path.getsize(path):
                    raise tarfile.ReadError(f"{member.name} has holes, or does not end within the file")
                if member.isreg() and is_image_name(member.name):
                    yield FrameFile(member.name, path, member.offset_data, member.size)
            # tarfile takes a damaged header in the middle for the end, which has a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end mark after {len(archive.getmembers())} members")
    except (tarfile.TarError, OverflowError) as error:
        raise ValueError(
            f"{name} cannot be read as an uncompressed .tar: it is damaged, cut off or compressed ({error}). Copy or "
            "download it again, or pass a folder of frames."
        ) from error


class WholeFile(io.BytesIO):
    """The content of a file. Reading on behind its end is an error, whatever PIL's `LOAD_TRUNCATED_IMAGES` says."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's. Raises EOFError if nothing is left."""
        content = super().read(size)
        if not content:
            raise EOFError("the file ends before the picture does")
        return content


def decode_image(content: bytes, where: str) -> PIL.Image.Image:
    """
    The content of an image file as an upright image (EXIF orientation is applied).

    Raises:
        ValueError: Damaged, cut off, no JPEG, PNG or WebP, too many pixels, more than 8 bits a channel.
    """
    try:
        PIL.Image.open(WholeFile(content), formats=FORMATS).verify()  # the checksums of a PNG
        image = PIL.Image.open(WholeFile(content), formats=FORMATS)
        image.load()
        PIL.ImageOps.exif_transpose(image, in_place=True)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{where} has too many pixels. Scale the frames down. PIL says: {error}") from error
    except Exception as error:  # damaged files end in IndexError, SyntaxError, struct.error …
        raise ValueError(
            f"{where} cannot be decoded: it is damaged, cut off or no JPEG, PNG or WebP. Copy or download it again, or "
            f"leave it out. PIL says: {error!r}"
        ) from error
    if image.mode.startswith("I"):  # PIL would clip its values to white
        raise ValueError(f"{where} has 16 bits a channel. Convert the frames to 8 bits.")
    return image
