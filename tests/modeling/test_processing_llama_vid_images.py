"""Image files of every kind, as PIL reads them whatever the version of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
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
