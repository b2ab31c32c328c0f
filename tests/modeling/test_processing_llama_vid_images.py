"""Image files of every kind, as PIL reads them whatever the version of transformers."""

import base64

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from small_chats import CAT, DOG, assert_equal_inputs, from_messages, user, video
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

ORIENTATION, TURNED = 0x0112, 6  # EXIF: to be shown a quarter turn clockwise


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def pixels(processor, image) -> torch.Tensor:
    return processor(text="<image> hi", images=image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_files_are_what_they_hold(tmp_path, processor, picture, suffix):
    path = tmp_path / f"picture.{suffix}"
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert torch.equal(pixels(processor, str(path)), pixels(processor, picture))


def test_photos_are_upright(tmp_path, processor, picture):
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    path = tmp_path / "photo.png"
    picture.save(path, exif=exif)
    assert torch.equal(pixels(processor, path), pixels(processor, picture.rotate(-90, expand=True)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_eight_bits_are_refused(tmp_path, processor, dtype):
    image = Image.fromarray(np.full((40, 60), 500, dtype))
    with pytest.raises(ValueError, match=r"An image is a picture of mode [IF].*, not of 8 bits a channel"):
        pixels(processor, image)
    path = tmp_path / "depth.tiff"
    image.save(path)
    with pytest.raises(ValueError, match=r"Image '.*depth.tiff' is a picture of mode [IF].* Convert it to RGB"):
        pixels(processor, path)


def test_pictures_written_as_text(tmp_path, processor, picture):
    path = tmp_path / "picture.png"
    picture.save(path)
    text = base64.encodebytes(path.read_bytes()).decode()
    for source in (text, f"data:image/png;base64,{text}"):
        assert torch.equal(pixels(processor, source), pixels(processor, picture))


def test_no_picture_starts_a_program(tmp_path, monkeypatch, processor, picture):
    picture.save(tmp_path / "picture.eps")
    path = (tmp_path / "picture.eps").rename(tmp_path / "picture.jpg")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("Ghostscript was started"))
    with pytest.raises(ValueError, match=r"Image '.*picture.jpg' cannot be read"):
        pixels(processor, path)


@pytest.mark.parametrize("key", ["path", "url", "video"])
def test_a_list_of_image_files_is_one_video(processor, tmp_path, key):
    (tmp_path / ".hidden").mkdir()
    files = [str(tmp_path / ".hidden" / f"{index}.png") for index in range(2)]
    for file, picture in zip(files, (CAT, DOG), strict=True):
        picture.save(file)
    chat = [user(video(files, key), "one")]
    assert_equal_inputs(from_messages(processor, chat), from_messages(processor, [user(video([CAT, DOG]), "one")]))
    assert chat == [user(video(files, key), "one")]
