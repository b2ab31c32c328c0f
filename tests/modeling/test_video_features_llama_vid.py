"""Reading files of features: what comes back, what is refused, and what tells encoders apart."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from small_models import small_config, small_model

from llama_vid.modeling import LlamaVidVideoProcessor
from llama_vid.modeling.video_features_llama_vid import VideoFeatures, encoder_fingerprint, pixel_settings

FRAMES, WIDTH = 70, 24


def metadata(**changes) -> dict[str, str]:
    return {
        "format": "llama_vid_video_features",
        "version": "1",
        "source": json.dumps({"name": "film.mp4", "size": 3, "sha256": "00"}),
        "encoder": "ab" * 32,
        "settings": json.dumps({"fps": 1.0, "size": {"shortest_edge": 224}, "image_mean": [0.5, 0.5, 0.5]}),
        "dtype": "float16",
        "grid_size": "null",
        "patch_grid_side": "4",
        "duration": "70.5",
    } | changes


def tensors(rows: int = 17, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    features = torch.randn(FRAMES, rows, WIDTH, generator=torch.Generator().manual_seed(0))
    return {"features": features.to(dtype), "times": torch.arange(FRAMES, dtype=torch.float64)}


def write(path, stored=None, **changes):
    save_file(tensors() if stored is None else stored, path, metadata=metadata(**changes))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "film.safetensors"


@pytest.mark.parametrize("rows", [16, 17], ids=["without CLS", "with CLS"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_round_trip(path, rows, dtype):
    stored = tensors(rows, getattr(torch, dtype))
    features = VideoFeatures(write(path, stored, dtype=dtype))
    assert (features.shape, features.num_frames, features.rows) == ((FRAMES, rows, WIDTH), FRAMES, rows)
    assert (features.dtype, features.grid_size, features.duration) == (dtype, None, 70.5)
    assert features.source["name"] == "film.mp4"
    assert torch.equal(features.times, stored["times"])
    assert torch.equal(features.load(getattr(torch, dtype)), stored["features"])
    assert torch.equal(features.load(), stored["features"].float())
    assert torch.equal(features.chunk(60, 1000), stored["features"][60:].float())
    assert torch.equal(features.chunk(3, 5, torch.bfloat16), stored["features"][3:5].to(torch.bfloat16))


def test_int8_is_scaled_back(path):
    stored = tensors()
    stored["features"] = torch.randint(-127, 128, (FRAMES, 17, WIDTH)).to(torch.int8)
    stored["scales"] = torch.rand(FRAMES, 17)
    features = VideoFeatures(write(path, stored, dtype="int8"))
    expected = stored["features"].float() * stored["scales"][..., None]
    assert torch.equal(features.load(), expected)
    assert torch.equal(features.chunk(2, 4, torch.float16), expected[2:4].half())


@pytest.mark.parametrize("num_cls", [0, 1])
def test_pooled_rows_come_back_for_every_patch_of_their_cell(path, num_cls):
    stored = tensors(num_cls + 4)
    features = VideoFeatures(write(path, stored, grid_size="2")).load(torch.float16)
    assert features.shape == (FRAMES, num_cls + 16, WIDTH)
    assert torch.equal(features[:, :num_cls], stored["features"][:, :num_cls])
    for row in range(4):
        for column in range(4):
            cell = stored["features"][:, num_cls + row // 2 * 2 + column // 2]
            assert torch.equal(features[:, num_cls + row * 4 + column], cell)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (5, 2), (FRAMES, FRAMES + 1)])
def test_chunks_without_frames_are_refused(path, start, stop):
    features = VideoFeatures(write(path))
    with pytest.raises(ValueError, match=rf"start={start} and stop={stop} hold none of the {FRAMES} frames"):
        features.chunk(start, stop)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError, match=r"film\.safetensors does not exist: make it with `llama-vid features`"):
        VideoFeatures(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "else"}, "its format and version are"),
        ({"version": "2"}, "its format and version are"),
        ({"dtype": "bfloat16"}, "its tensors contradict its metadata"),
        ({"dtype": "int8"}, "scales"),
        ({"dtype": "float64"}, "float64"),
        ({"patch_grid_side": "5"}, "its tensors contradict its metadata"),
        ({"grid_size": "3"}, "its tensors contradict its metadata"),
        ({"settings": "{"}, "Expecting property name"),
        ({"settings": "[]"}, r"its settings are \[\]"),
        ({"source": "[]"}, r"its source is \[\]"),
        ({"source": "{}"}, r"its source is \{\}"),
        ({"grid_size": "0"}, "its patch_grid_side and grid_size are 4 and 0"),
        ({"grid_size": "-2"}, "its patch_grid_side and grid_size are 4 and -2"),
        ({"grid_size": '"2"'}, "its patch_grid_side and grid_size are 4 and '2'"),
        ({"patch_grid_side": "0"}, "its patch_grid_side and grid_size are 0 and None"),
    ],
)
def test_metadata_that_do_not_fit(path, changes, reason):
    write(path, **changes)
    with pytest.raises(ValueError, match=rf"is damaged or no file of video features \(.*{reason}.*extract them again"):
        VideoFeatures(path)


@pytest.mark.parametrize("missing", ["features", "times"])
def test_missing_tensors(path, missing):
    stored = tensors()
    del stored[missing]
    with pytest.raises(ValueError, match="is damaged or no file of video features"):
        VideoFeatures(write(path, stored))


def test_cut_off_and_foreign_files(path):
    content = write(path).read_bytes()
    for wrong in (content[:-1], content[:50], b"", b"text" * 100):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="is damaged or no file of video features"):
            VideoFeatures(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"its format and version are \(None, None\)"):
        VideoFeatures(path)


def test_check_names_both_sides(path):
    features = VideoFeatures(write(path))
    features.check()
    features.check("ab" * 32, {"size": {"shortest_edge": 224}, "image_mean": (0.5, 0.5, 0.5)})
    with pytest.raises(ValueError, match=r"vision tower abababababababab…, this checkpoint's is cdcdcdcdcdcdcdcd…"):
        features.check("cd" * 32)
    with pytest.raises(ValueError, match=r"made with \{'size': \{'shortest_edge': 224\}\}, .* \{'size': .*336\}\}"):
        features.check(settings={"size": {"shortest_edge": 336}, "image_mean": (0.5, 0.5, 0.5)})
    with pytest.raises(ValueError, match=r"made with \{'resample': None\}"):
        features.check(settings={"resample": 3})


def test_fingerprint_follows_what_changes_the_features():
    model = small_model().model
    original = encoder_fingerprint(model.vision_tower, model.config)
    assert len(original) == 64

    model.frames_per_chunk = 3
    model.language_model = None
    assert encoder_fingerprint(copy.deepcopy(model.vision_tower), model.config) == original
    assert encoder_fingerprint(model.vision_tower, small_config(vision_feature_layer=-2)) != original
    assert encoder_fingerprint(copy.deepcopy(model.vision_tower).half(), model.config) != original

    with torch.no_grad():
        next(model.vision_tower.parameters()).view(-1)[0] += 1e-3
    assert encoder_fingerprint(model.vision_tower, model.config) != original
    with pytest.raises(ValueError, match="has no data here"):
        encoder_fingerprint(model.vision_tower.to("meta"), model.config)


def test_fingerprint_does_not_depend_on_the_version_of_a_library():
    """Files outlive installations: the same weights and configuration give the same digits everywhere."""
    model = small_model().model
    for parameter in model.vision_tower.parameters():
        parameter.data.fill_(0.5)
    assert encoder_fingerprint(model.vision_tower, model.config)[:16] == "4708372780a05739"


def test_pixel_settings():
    settings = pixel_settings(LlamaVidVideoProcessor(fps=3, crop_size={"height": 56, "width": 56}))
    assert settings["crop_size"] == {"height": 56, "width": 56}
    assert settings["resample"] == 3
    assert "fps" not in settings
    assert settings == pixel_settings(LlamaVidVideoProcessor(crop_size={"height": 56, "width": 56}))
    assert settings != pixel_settings(LlamaVidVideoProcessor())
    assert settings == json.loads(json.dumps(settings))
