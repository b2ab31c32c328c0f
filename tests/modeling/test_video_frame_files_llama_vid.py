# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Folders and .tar files of frames, and lists of times."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import torch
from small_videos import pictures
from transformers.video_utils import VideoMetadata

from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling import video_frame_files_llama_vid as frame_files
from llama_vid.modeling.video_frame_files_llama_vid import FrameFiles, is_frame_files

SIZE = 28


@pytest.fixture
def processor() -> LlamaVidVideoProcessor:
    """As it is by default, for small frames."""
    return LlamaVidVideoProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


@pytest.fixture
def read_frames(monkeypatch) -> list[str]:
    """The names of the frames that are decoded, as they are."""
    decode, names = frame_files.decode_image, []
    monkeypatch.setattr(
        frame_files,
        "decode_image",
        lambda content, where: names.append(where.split()[1]) or decode(content, where),
    )
    return names


def encode(picture: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_tar(path: Path, files: dict[str, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make(kind: str, path: Path, files: dict[str, bytes]) -> Path:
    return make_folder(path, files) if kind == "folder" else make_tar(path.with_suffix(".tar"), files)


def film(count: int) -> dict[str, bytes]:
    """`img_1.png` and so on, so that names in the order of their characters are in a wrong one."""
    return {f"img_{index}.png": encode(picture) for index, picture in enumerate(pictures(count), start=1)}


# Which files are frames.


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_frames_are_those_of_memory(processor, tmp_path, kind):
    video = make(kind, tmp_path / "film", film(12))
    expected = processor(list(pictures(12)), return_metadata=True)
    for path in (video, str(video)):
        output = processor(path, return_metadata=True)
        assert torch.equal(output["pixel_values_videos"], expected["pixel_values_videos"])
        assert output["video_metadata"] == expected["video_metadata"]
    chunks = list(processor.iter_chunks(video, chunk_size=5))
    assert [len(times) for _, times in chunks] == [5, 5, 2]
    assert torch.equal(torch.cat([pixels for pixels, _ in chunks]), expected["pixel_values_videos"])


def test_videos_of_every_form_in_one_batch(processor, tmp_path):
    folder, archive = make("folder", tmp_path / "one", film(3)), make("tar", tmp_path / "two", film(2))
    given = [{"fps": 1}, {"times": [0, 4.5]}, {}]
    output = processor(
        [folder, archive, list(pictures(4))], video_metadata=given, do_sample_frames=False, return_metadata=True
    )
    assert output["video_num_frames"].tolist() == [3, 2, 4]
    assert [entry.timestamps for entry in output["video_metadata"]] == [[0, 1, 2], [0, 4.5], [0, 1, 2, 3]]


def test_a_relative_path_stays_what_it_was(processor, tmp_path, monkeypatch):
    make("folder", tmp_path / "film", film(2))
    monkeypatch.chdir(tmp_path)
    chunks = processor.iter_chunks("film", chunk_size=1)
    next(chunks)
    monkeypatch.chdir("/")
    assert len(list(chunks)) == 1


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names_are_in_natural_order(tmp_path, kind):
    picture = encode(next(pictures(1)))
    names = ["img_1.png", "img_01.png", "img_2.JPG", "img_10.jpeg", "img_10b.WebP", f"img_{'9' * 30}.png", "z.png"]
    frames = FrameFiles(make(kind, tmp_path / "film", dict.fromkeys(reversed(names), picture)))
    assert [frame.name for frame in frames.frames] == ["img_01.png", "img_1.png", *names[2:]]


def test_a_tar_is_ordered_by_full_names(tmp_path):
    picture = encode(next(pictures(1)))
    names = ["./shot_2/img_1.png", "./shot_2/img_9.png", "./shot_10/img_1.png", f"./{'long' * 50}/img_1.png"]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        video = make_tar(tmp_path / "film.tar", dict.fromkeys(reversed(names), picture), format=kind)
        assert [frame.name for frame in FrameFiles(video).frames] == [names[3], *names[:3]]


def test_hidden_and_other_files_are_ignored(tmp_path):
    others = [".img_3.png", "._img_1.png", "Thumbs.db", "desktop.ini", "list.txt", "png"]
    files = film(2) | dict.fromkeys(others, b"no image")
    folder = make_folder(tmp_path / "film", files)
    make_folder(folder / "more.png", film(1))
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "img_4.png")
    assert [frame.name for frame in FrameFiles(folder).frames] == ["img_1.png", "img_2.png"]

    files |= {".thumbnails/img_5.png": b"no image", "__MACOSX/._img_1.png": b"no image", "info/list.txt": b""}
    archive = make_tar(tmp_path / "film.tar", files)
    assert [frame.name for frame in FrameFiles(archive).frames] == ["img_1.png", "img_2.png"]


def test_nothing_but_files_of_a_tar_is_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(encode(next(pictures(1))))
    archive = make_tar(tmp_path / "film.tar", film(1))
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    with tarfile.open(archive, "a") as opened:
        for index, kind in enumerate(kinds, start=2):
            member = tarfile.TarInfo(f"img_{index}.png")
            member.type, member.linkname = kind, "secret.png"
            opened.addfile(member)
    before = sorted(tmp_path.iterdir())
    frames = FrameFiles(archive)
    assert [frame.name for frame in frames.frames] == ["img_1.png"]
    assert frames[0].size == (64, 48)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_added_to_a_tar_again_counts(tmp_path):
    first, second = (encode(picture) for picture in pictures(2))
    archive = make_tar(tmp_path / "film.tar", {"img_1.png": first})
    with tarfile.open(archive, "a") as opened:
        member = tarfile.TarInfo("img_1.png")
        member.size = len(second)
        opened.addfile(member, io.BytesIO(second))
    (frame,) = FrameFiles(archive)
    assert np.array_equal(np.array(frame), list(pictures(2))[1])


def test_what_is_taken_for_frame_files(tmp_path):
    for name in ("film.tar", "FILM.TAR", "film.tar.gz", "film.tgz", "film.zip", "film.mp4"):
        (tmp_path / name).touch()
    assert is_frame_files(tmp_path)
    assert is_frame_files(str(tmp_path))
    for name in ("film.tar", "FILM.TAR", "film.tar.gz", "film.tgz", "film.zip"):
        assert is_frame_files(tmp_path / name)
    for video in (tmp_path / "film.mp4", tmp_path / "nowhere.tar", b"film.tar", "https://host/film.tar", "a" * 5000):
        assert not is_frame_files(video)
    assert not is_frame_files([tmp_path])


# Which frames are read.


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_only_chosen_frames_are_read(processor, tmp_path, read_frames, kind):
    files = film(8) | {f"img_{index}.png": b"damaged" for index in (2, 3, 4, 6, 7, 8)}
    video = make(kind, tmp_path / "film", files)
    output = processor(video, video_metadata={"fps": 4}, return_metadata=True)
    assert read_frames == ["img_1.png", "img_5.png"]
    (metadata,) = output["video_metadata"]
    assert metadata.timestamps == [0, 1]
    assert metadata.frames_indices == [0, 4]
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (8, 4, 2)


def test_frames_are_read_when_they_are_asked_for(processor, tmp_path, read_frames):
    chunks = processor.iter_chunks(make("tar", tmp_path / "film", film(6)), chunk_size=2)
    for count in (2, 4, 6):
        next(chunks)
        assert len(read_frames) == count


def test_a_frame_that_is_repeated_is_read_once(processor, tmp_path, read_frames):
    video = make("folder", tmp_path / "slides", film(2))
    output = processor(video, video_metadata={"times": [0, 3]}, return_metadata=True)
    assert read_frames == ["img_1.png", "img_2.png"]
    assert output["video_metadata"][0].timestamps == [0, 0, 0, 3, 3, 3]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_frames_are_turned_upright(tmp_path, kind):
    """Orientation 6: the camera was turned, the picture is to be turned clockwise."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(next(pictures(1)), kind, exif=exif, **options)
    (frame,) = FrameFiles(make_folder(tmp_path / "film", {"img_1.jpg": content}))
    assert frame.size == (48, 64)
    plain = np.array(PIL.Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(np.array(frame.convert("RGB")), np.rot90(plain, -1))


def test_grey_palettes_and_alpha(processor, tmp_path):
    grey = next(pictures(1))[..., 0]
    files = {
        "img_1.png": encode(grey),
        "img_2.png": encode(np.dstack([grey] * 3)),
        "img_3.png": encode(np.dstack([grey] * 4)),
        "img_4.png": encode(np.dstack([grey, grey])),
    }
    palette = PIL.Image.fromarray(grey).convert("P")
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=3)
    files["img_5.png"] = file.getvalue()
    first, *others = processor(make_folder(tmp_path / "film", files))["pixel_values_videos"]
    assert all(torch.equal(other, first) for other in others)


# Times.


def test_sampling_by_rate(processor, tmp_path):
    video = make("tar", tmp_path / "film", film(50))
    given = {"fps": 24}
    for arguments, indices in (
        ({}, [0, 24, 48]),
        ({"fps": 2}, [0, 12, 24, 36, 48]),
        ({"num_frames": 2}, [0, 25]),
        ({"max_frames": 2}, [0, 24]),
        ({"fps": 4, "start": 1, "end": 1.5}, [24, 30]),
    ):
        (metadata,) = processor(video, video_metadata=given, return_metadata=True, **arguments)["video_metadata"]
        assert metadata.frames_indices == indices
        assert metadata.timestamps == [index / 24 for index in indices]


def test_sampling_by_times(processor, tmp_path):
    """A list of times is what the container of a file says: the frame on screen at an instant, with its own time."""
    video = make("folder", tmp_path / "film", film(7))
    times = [0.0, 0.5, 1.5, 2.0, 2.75, 4.0, 4.5]  # and the last one is on screen for the median pause: until 5.125
    for arguments, indices in (
        ({}, [0, 1, 3, 4, 5]),
        ({"fps": 2}, [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]),
        ({"num_frames": 3}, [0, 2, 4]),
        ({"max_frames": 3}, [0, 1, 4]),
        ({"start": 1, "end": 3}, [1, 3]),
        ({"do_sample_frames": False}, range(7)),
    ):
        for zero in (0, -0.7, 1.75e9):
            given = {"times": [time + zero for time in times]}
            (metadata,) = processor(video, video_metadata=given, return_metadata=True, **arguments)["video_metadata"]
            assert metadata.frames_indices == list(indices)
            # Seconds since 1970 leave microseconds; part of a video begins within a frame, whose time is its own.
            assert metadata.timestamps == pytest.approx([times[index] for index in indices], abs=1e-6)
            assert metadata.duration == pytest.approx(5.125, abs=1e-6)
            assert (metadata.total_num_frames, metadata.fps) == (7, pytest.approx(7 / 5.125))


@pytest.mark.parametrize("rate", [24, 25, 30, 60, 24000 / 1001, 30000 / 1001, 12.5, 9, 7, 1 / 3])
def test_times_at_a_rate_are_that_rate(processor, rate):
    frames = list(pictures(40))
    for arguments in ({}, {"fps": rate}, {"fps": rate / 2}, {"num_frames": 7}, {"start": 3 / rate, "end": 30 / rate}):
        expected = processor(frames, video_metadata={"fps": rate}, return_metadata=True, **arguments)
        given = {"times": [index / rate for index in range(40)]}
        output = processor(frames, video_metadata=given, return_metadata=True, **arguments)
        (metadata,), (other,) = output["video_metadata"], expected["video_metadata"]
        assert metadata.frames_indices == other.frames_indices
        assert metadata.timestamps == pytest.approx(other.timestamps, abs=1e-6)


def test_times_of_frames_in_memory(processor):
    times = [0, 0.41, 1.23, 1.5, 2.71]
    given = {"times": np.array(times)}
    for frames in (np.stack(list(pictures(5))), list(pictures(5)), [PIL.Image.fromarray(p) for p in pictures(5)]):
        output = processor(frames, video_metadata=given, do_sample_frames=False, return_metadata=True)
        assert output["video_metadata"][0].timestamps == times
    chunks = processor.iter_chunks(list(pictures(5)), video_metadata=given)
    assert [seconds.tolist() for _, seconds in chunks] == [[0, 0.41, 1.5, 2.71]]


def test_times_count_before_a_rate(processor):
    given = {"fps": 25, "times": [0, 1, 5], "frames_indices": [3, 30, 99], "total_num_frames": 100}
    arguments = {"do_sample_frames": False, "return_metadata": True}
    (metadata,) = processor(list(pictures(3)), video_metadata=given, **arguments)["video_metadata"]
    assert metadata.timestamps == [0, 1, 5]
    assert (metadata.frames_indices, metadata.total_num_frames) == ([3, 30, 99], 100)
    again = processor(list(pictures(3)), video_metadata=metadata, **arguments)["video_metadata"]
    assert again == [metadata]
    plain = processor(list(pictures(3)), video_metadata=VideoMetadata(total_num_frames=3, fps=0.5), **arguments)
    assert plain["video_metadata"][0].timestamps == [0, 2, 4]


def test_one_frame(processor, tmp_path):
    video = make("folder", tmp_path / "film", film(1))
    for given in (None, {"fps": 1}, {"times": [7.5]}):
        (metadata,) = processor(video, video_metadata=given, return_metadata=True)["video_metadata"]
        assert metadata.timestamps == [0]
        assert (metadata.duration, metadata.fps) == (1, 1)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_frames_without_a_clock_are_all_kept(processor, tmp_path, kind):
    video = make(kind, tmp_path / "film", film(5))
    (metadata,) = LlamaVidVideoProcessor(fps=2)(video, return_metadata=True)["video_metadata"]
    assert metadata.timestamps == [0, 0.5, 1, 1.5, 2]
    with pytest.raises(ValueError, match=rf"fps=2 was asked for, but .*{video.name} is image files.*\"times\": \[…\]"):
        processor(video, fps=2)
    with pytest.raises(ValueError, match=rf"start=1 and end=2 are seconds, but .*{video.name} is image files"):
        processor(video, start=1, end=2)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 1], r"one for each of the 3 frames, got shape \(2,\)"),
        ([[0, 1, 2]], r"one for each of the 3 frames, got shape \(1, 3\)"),
        (2.0, r"one for each of the 3 frames, got shape \(\)"),
        ([], r"got shape \(0,\)"),
        ([0, 1, 1], "each later than the one before, got 1.0 after 1.0 for frame 2"),
        ([0, 2, 1], "got 1.0 after 2.0 for frame 2"),
        ([0, float("nan"), 1], "got nan after 0.0 for frame 1"),
        ([float("-inf"), 0, 1], "got -inf for frame 0"),
        ([0, 1, float("inf")], "got inf after 1.0 for frame 2"),
        ([0, 1, 1e300], r"got 1e\+300 after 1.0 for frame 2"),
        ([0, None, 1], "got nan after 0.0 for frame 1"),
        (["0:00", "0:01", "0:02"], r"times must be numbers of seconds, got \['0:00'"),
        ([0, [1, 2], 3], "times must be numbers of seconds"),
    ],
)
def test_times_that_make_no_sense(processor, tmp_path, times, message):
    folder = make("folder", tmp_path / "film", film(3))
    for video in (folder, list(pictures(3))):
        with pytest.raises(ValueError, match=f"video_metadata of .*{message}"):
            processor(video, video_metadata={"times": times})


# What cannot be read.


def test_nothing_to_read(processor, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image \(.jpg, .jpeg, .png, .webp\). Pass a video file"):
        processor(tmp_path / "empty")
    folder = make("folder", tmp_path / "film", {"film.mp4": b"", "._img_1.jpg": b""})
    with pytest.raises(ValueError, match="film holds no image"):
        next(processor.iter_chunks(folder))
    archive = make("tar", tmp_path / "film", {"list.txt": b""})
    with pytest.raises(ValueError, match=r"film\.tar holds no image"):
        processor(archive)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar"):
        processor(tmp_path / "nowhere.tar")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar"):
        FrameFiles(tmp_path / "nowhere.tar")


@pytest.mark.parametrize("name", ["film.tar.gz", "film.TGZ", "film.tar.xz", "film.tar.zst", "film.zip"])
def test_packed_files(processor, tmp_path, name):
    with tarfile.open(tmp_path / name, "w:gz"):
        pass
    with pytest.raises(ValueError, match=rf"{name} is packed, .* Decompress it to an uncompressed \.tar"):
        processor(tmp_path / name)


def test_a_compressed_file_that_is_called_tar(processor, tmp_path):
    with tarfile.open(tmp_path / "film.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"film\.tar cannot be read as an uncompressed \.tar: .* compressed"):
        processor(tmp_path / "film.tar")


@pytest.mark.parametrize("cut", [0, 1, 100, 512, 700, 1024, 2048, 2500, 4608, 4700])
def test_a_tar_that_is_cut_off(processor, tmp_path, cut):
    """At every kind of place: within a header, within a frame, between two; the end mark begins at 4608."""
    archive = make_tar(tmp_path / "film.tar", {f"img_{index}.png": bytes(1000) for index in range(3)})
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"film\.tar cannot be read .* damaged, cut off or compressed .* Copy or dow"):
        processor(archive)


def test_a_tar_with_a_damaged_header(processor, tmp_path):
    archive = make_tar(tmp_path / "film.tar", {f"img_{index}.png": bytes(1000) for index in range(3)})
    content = bytearray(archive.read_bytes())
    content[1536 + 100] ^= 1  # in the header of the second frame, which tarfile would take for the end
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged, cut off or compressed \(no end mark after 1 members\)"):
        processor(archive)


@pytest.mark.parametrize("size", [b"\xff" * 10 + b"\xfc\x00", b"\x80" + b"\xff" * 11], ids=["negative", "immense"])
def test_a_tar_with_a_false_size(processor, tmp_path, size):
    archive = make_tar(tmp_path / "film.tar", film(2))
    content = bytearray(archive.read_bytes())
    content[124:136] = size
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 8 * ord(" "))
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"film\.tar cannot be read as an uncompressed \.tar"):
        processor(archive)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_frames_that_are_cut_off(processor, tmp_path, monkeypatch, kind, lenient):
    """Also where another library told PIL to fill what is missing with grey."""
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    files = {f"img_{index}.jpg": encode(noise, kind) for index in range(3)}
    assert len(processor(make("folder", tmp_path / "whole", files))["pixel_values_videos"]) == 3
    for length in (0, 10, 200, len(files["img_1.jpg"]) // 2, len(files["img_1.jpg"]) - 20):
        video = make("tar", tmp_path / f"film_{length}", files | {"img_1.jpg": files["img_1.jpg"][:length]})
        with pytest.raises(ValueError, match=rf"Frame img_1\.jpg of .*film_{length}\.tar cannot be decoded"):
            processor(video)
        chunks = processor.iter_chunks(video, chunk_size=1)
        next(chunks)
        with pytest.raises(ValueError, match=r"Frame img_1\.jpg .* Copy or download it again, or leave it out"):
            next(chunks)


def test_a_jpeg_may_have_more_behind_its_end(tmp_path):
    content = encode(next(pictures(1)), "JPEG")
    files = {"img_1.jpg": content, "img_2.jpg": content + b"\xff\xda of a film that a phone has put here"}
    first, second = FrameFiles(make_folder(tmp_path / "film", files))
    assert np.array_equal(np.array(first), np.array(second))


def test_frames_that_are_damaged_or_something_else(processor, tmp_path):
    damaged = bytearray(film(1)["img_1.png"])
    damaged[60] ^= 255
    gif = encode(next(pictures(1)), "GIF")
    for content in (bytes(damaged), gif, b"<html>Not found</html>"):
        name = f"film_{len(content)}"
        with pytest.raises(ValueError, match=rf"Frame img_1\.png of .*{name} cannot be decoded"):
            processor(make_folder(tmp_path / name, {"img_1.png": content}))


def test_frames_with_too_many_pixels(processor, tmp_path, monkeypatch):
    video = make("folder", tmp_path / "film", film(1))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"Frame img_1\.png of .*film has too many pixels\. Scale the frames down\."):
        processor(video)


def test_frames_of_16_bits(processor, tmp_path):
    deep = next(pictures(1))[..., 0].astype(np.uint16) * 257
    video = make_folder(tmp_path / "film", {"img_1.png": encode(deep)})
    with pytest.raises(ValueError, match=r"Frame img_1\.png of .* has 16 bits a channel\. Convert the frames to 8 bit"):
        processor(video)


def test_a_frame_that_vanishes(processor, tmp_path):
    video = make("folder", tmp_path / "film", film(2))
    chunks = processor.iter_chunks(video, chunk_size=1)
    next(chunks)
    (video / "img_2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"img_2\.png"):
        next(chunks)


# As remote code.


def test_the_file_is_saved_with_the_processor(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "video_frame_files_llama_vid.py").is_file()
