"""Extracting features: the files, what is skipped and what is made again, interruptions, processes side by side."""

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from small_checkpoint import UNTRAINED
from small_videos import pictures
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid.data.clips import make_demo_clip
from llama_vid.features import ExtractionReport, extract_features, feature_paths, to_stored_dtype
from llama_vid.modeling.modeling_llama_vid_visual import LlamaVidVisualModel
from llama_vid.modeling.video_features_llama_vid import VideoFeatures, encoder_fingerprint, pixel_settings

QUESTION = "What is moving?"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [make_demo_clip(folder / f"{name}.mp4", seconds=3 + seed, seed=seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(UNTRAINED).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


def extract(videos, output, **kwargs) -> ExtractionReport:
    return extract_features(videos, output, **{"model": UNTRAINED, **kwargs})


def run_script(code: str, *arguments) -> subprocess.Popen:
    header = (
        "import sys\nfrom llama_vid.features import extract_features, _Extractor\n"
        f"videos, output, model = sys.argv[2:], sys.argv[1], {UNTRAINED!r}\n"
    )
    command = [sys.executable, "-c", header + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the locks."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".locks"}


def logits(model, processor, features: torch.Tensor) -> torch.Tensor:
    content = [{"type": "video", "features": features}, {"type": "text", "text": QUESTION}]
    conversation = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**inputs).logits[:, -1]


def encode(model, processor, clip, **sampling) -> torch.Tensor:
    chunks = processor.video_processor.iter_chunks(clip, **sampling)
    return torch.cat([model.encode_frames(pixels) for pixels, _ in chunks])


def test_file_holds_what_the_encoder_gives(clips, tmp_path, model, processor):
    report = extract(clips, tmp_path, fps=5)
    assert list(report.files.values()) == report.written == [tmp_path / f"{name}.safetensors" for name in "abc"]
    assert (report.num_frames, report.skipped, report.errors) == (15 + 20 + 25, [], {})
    for clip, path in zip(clips, report.written, strict=True):
        stored, expected = VideoFeatures(path), encode(model, processor, clip, fps=5)
        assert stored.shape == tuple(expected.shape)
        assert torch.equal(stored.load(torch.float16), expected.half())
        assert stored.times.tolist() == [i / 5 for i in range(len(expected))]
        assert stored.duration == len(expected) / 5
        assert (stored.source["name"], stored.source["size"]) == (clip.name, clip.stat().st_size)
        assert (stored.settings["fps"], stored.settings["num_frames"], stored.settings["max_frames"]) == (5, None, None)
        stored.check(
            encoder_fingerprint(model.model.vision_tower, model.config), pixel_settings(processor.video_processor)
        )
    assert str(tmp_path) not in (tmp_path / "a.safetensors").read_bytes()[:8192].decode("latin-1")


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 5e-2)])
def test_logits_from_features_equal_those_from_pixels_to_rounding(clips, tmp_path, model, processor, dtype, error):
    exact = encode(model, processor, clips[0])
    stored = VideoFeatures(extract(clips[0], tmp_path, dtype=dtype).written[0])
    expected, found = (logits(model, processor, features) for features in (exact, stored.load()))
    assert (found - expected).norm() <= error * expected.norm()
    if dtype == "float16":
        assert torch.equal(found, logits(model, processor, exact.half().float()))


def test_int8_is_half_a_scale_off_at_most():
    features = torch.randn(5, 17, 24, generator=torch.Generator().manual_seed(0)) * 7
    features[0, 0, 0], features[1, 1] = 900.0, 0.0
    stored, scales = to_stored_dtype(features, "int8")
    error = (stored.float() * scales.unsqueeze(-1) - features).abs()
    assert (error <= scales.unsqueeze(-1) * 0.5 * (1 + 1e-4)).all()
    assert error[1, 1].max() == 0


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_do_not_fit_are_refused(value, dtype):
    with pytest.raises(ValueError, match=rf"{dtype} cannot hold .* use dtype='bfloat16'"):
        to_stored_dtype(torch.full((1, 2, 8), value), dtype)


def test_pooled_rows_keep_the_content_token(clips, tmp_path, model, processor):
    stored = VideoFeatures(extract(clips[0], tmp_path, grid_size=2, dtype="bfloat16").written[0])
    features, exact = stored.load(), encode(model, processor, clips[0])
    assert features.shape == exact.shape
    torch.testing.assert_close(features[:, 1:].mean(1), exact[:, 1:].mean(1), rtol=2e-2, atol=2e-2)
    grid = features[:, 1:].unflatten(1, (4, 4))
    assert torch.equal(grid[:, ::2, ::2], grid[:, 1::2, 1::2])
    assert not torch.equal(grid[:, 0, 0], grid[:, 0, 2])


def test_memory_holds_a_chunk(clips, tmp_path, monkeypatch):
    lengths, encode_frames = [], LlamaVidVisualModel.encode_frames

    def watched(self, pixels):
        lengths.append(len(pixels))
        assert (tmp_path / ".a.safetensors.partial").exists()
        return encode_frames(self, pixels)

    monkeypatch.setattr(LlamaVidVisualModel, "encode_frames", watched)
    report = extract(clips[0], tmp_path, fps=5, chunk_size=4)
    assert lengths == [4, 4, 4, 3]
    assert VideoFeatures(report.written[0]).num_frames == 15
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".locks", "a.safetensors"]


def test_only_the_vision_tower_is_needed(clips, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(UNTRAINED, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "language_model" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    extract(clips[0], tmp_path / "a", model=folder)
    extract(clips[0], tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")

    del tensors["model.vision_tower.embeddings.class_embedding"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has 1 missing keys in its vision tower \(.*class_embedding"):
        extract(clips[0], tmp_path / "a", model=folder)


# What is there already.


def test_done_files_are_left_alone(clips, tmp_path):
    first = extract(clips, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.written}
    again = extract(clips, tmp_path)
    assert (again.written, again.skipped, again.num_frames) == ([], first.written, 0)
    assert {path: path.stat().st_mtime_ns for path in first.written} == before
    assert extract(clips, tmp_path, overwrite=True).written == first.written


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"fps": 2}, "settings"), ({"dtype": "int8"}, "dtype"), ({"grid_size": 2}, "grid_size")],
    ids=["fps", "dtype", "grid_size"],
)
def test_other_settings_are_made_again(clips, tmp_path, caplog, changed, words):
    extract(clips[0], tmp_path)
    with caplog.at_level(logging.WARNING, logger="llama_vid.features"):
        report = extract(clips[0], tmp_path, **changed)
    assert len(report.written) == 1
    assert f"is made again, because it is of another {words}" in caplog.text
    assert extract(clips[0], tmp_path, **changed).skipped == report.written


def test_a_part_of_a_video_and_its_keyframes(clips, tmp_path, caplog, processor):
    whole, part = extract(clips[0], tmp_path / "whole"), extract(clips[0], tmp_path / "part", start=1, end=3)
    times = VideoFeatures(part.written[0]).times
    assert times.tolist() == [1, 2]
    frames = VideoFeatures(whole.written[0]).load()[1:3]
    torch.testing.assert_close(VideoFeatures(part.written[0]).load(), frames)

    assert extract(clips[0], tmp_path / "part", start=1, end=3).written == []
    for other in ({"start": 1}, {"start": 1, "end": 3, "keyframes_only": True}):
        assert len(extract(clips[0], tmp_path / "part", **other).written) == 1
        assert "made again, because it is of another settings" in caplog.text
        caplog.clear()


def test_folders_of_frames(tmp_path, model, processor):
    folder = tmp_path / "film"
    folder.mkdir()
    images = [Image.fromarray(picture) for picture in pictures(6)]
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    report = extract(folder, tmp_path / "out", video_metadata={"fps": 2})
    features = VideoFeatures(report.files[str(folder)])
    assert features.times.tolist() == [0, 1, 2]
    expected = encode(model, processor, images[::2])
    torch.testing.assert_close(features.load(), expected, atol=5e-3, rtol=5e-3)

    assert extract(folder, tmp_path / "out", video_metadata={"fps": 2}).written == []
    assert extract(folder, tmp_path / "out", video_metadata={"fps": 3}).written == [Path(features.path)]
    assert extract(folder, tmp_path / "clock", video_metadata={"times": np.arange(6) / 2}).files
    images[0].save(folder / "7.png")
    with pytest.raises(ValueError, match="another video, or of an older state of this one"):
        extract(folder, tmp_path / "out", video_metadata={"fps": 3})


def test_equal_settings_said_otherwise_are_equal(clips, tmp_path):
    extract(clips[0], tmp_path)
    for fps in (1.0, 1):
        assert len(extract(clips[0], tmp_path, fps=fps, chunk_size=2).skipped) == 1


def test_features_of_another_encoder_are_made_again(clips, tmp_path, caplog):
    folder = tmp_path / "checkpoint"
    shutil.copytree(UNTRAINED, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.vision_tower.embeddings.class_embedding"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    extract(clips[0], tmp_path / "out")
    with caplog.at_level(logging.WARNING, logger="llama_vid.features"):
        assert len(extract(clips[0], tmp_path / "out", model=folder).written) == 1
    assert "of another encoder" in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_damaged_files_are_made_again(clips, tmp_path, caplog, damage):
    path = extract(clips[0], tmp_path).written[0]
    good = path.read_bytes()
    path.write_bytes({"truncated": good[:-100], "empty": b"", "foreign": b"no features" * 100}[damage])
    with caplog.at_level(logging.WARNING, logger="llama_vid.features"):
        assert extract(clips[0], tmp_path).written == [path]
    assert "is damaged or no file of video features" in caplog.text
    assert path.read_bytes() == good


def test_another_video_is_not_overwritten(clips, tmp_path):
    other = tmp_path / "a.mp4"
    shutil.copy(clips[1], other)
    path = extract(clips[0], tmp_path / "out").written[0]
    good = path.read_bytes()
    with pytest.raises(ValueError, match="holds the features of another video"):
        extract(other, tmp_path / "out")
    assert path.read_bytes() == good
    assert extract(other, tmp_path / "out", overwrite=True).written == [path]


# Interruptions and processes.


def test_killed_and_run_again_equals_an_uninterrupted_run(clips, tmp_path):
    extract(clips, tmp_path / "whole", fps=4, chunk_size=3)
    killed = run_script(
        "import os, signal\n"
        "encoded = _Extractor._encoded\n"
        "def deadly(self, *given):\n"
        "    for number, chunk in enumerate(encoded(self, *given)):\n"
        "        if number == 2 and 'b' in given[-1].desc:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield chunk\n"
        "_Extractor._encoded = deadly\n"
        "extract_features(videos, output, model=model, fps=4, chunk_size=3)\n",
        tmp_path / "killed",
        *clips,
    )
    killed.communicate(timeout=300)
    assert killed.returncode == -9
    assert list(contents(tmp_path / "killed")) == [".b.safetensors.partial", "a.safetensors"]

    report = extract(clips, tmp_path / "killed", fps=4, chunk_size=3)
    assert [path.stem for path in report.skipped] == ["a"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_processes_share_a_folder(clips, tmp_path):
    code = (
        "report = extract_features(videos, output, model=model)\n"
        "print(*sorted(path.stem for path in report.written), sep='')\n"
    )
    processes = [run_script(code, tmp_path / "shared", *clips) for _ in range(2)]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    written = [output.strip().splitlines()[-1] if output.strip() else "" for output, _ in results]
    assert sorted("".join(written)) == ["a", "b", "c"]
    extract(clips, tmp_path / "alone")
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_what_another_process_is_at_is_waited_for(clips, tmp_path):
    """The others are done meanwhile, and nothing is done twice."""
    done = extract(clips[0], tmp_path / "elsewhere").written[0]
    out = tmp_path / "out"
    (out / ".locks").mkdir(parents=True)
    locked = threading.Event()

    def finish_a_when_c_is_there():
        with FileLock(out / ".locks" / "a.safetensors.lock"):
            locked.set()
            deadline = time.monotonic() + 120
            while not (out / "c.safetensors").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            shutil.copy(done, out / "a.safetensors")

    other = threading.Thread(target=finish_a_when_c_is_there)
    other.start()
    locked.wait()
    report = extract(clips, out, overwrite=True)
    other.join()
    assert [path.stem for path in report.written] == ["b", "c"]
    assert [path.stem for path in report.skipped] == ["a"]


def test_launched_processes_share_the_videos_out(clips, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom llama_vid.features import extract_features\n"
        f"report = extract_features(sys.argv[2:], sys.argv[1], model={UNTRAINED!r})\n"
        "sys.stdout.write(f'written {\" \".join(path.stem for path in report.written)}\\n')\n"  # in one piece
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(script), str(tmp_path / "shared"), *map(str, clips)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = sorted(line for line in result.stdout.splitlines() if line.startswith("written"))
    assert lines == ["written a b", "written c"]
    extract(clips, tmp_path / "alone")
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


# Names and bad input.


def test_names(tmp_path):
    names = ["a/film.mp4", "b/Film.mkv", "b/other.mp4", "https://example.org/x/clip%201.webm?key=1", "b/other.mp4"]
    paths = feature_paths(names, tmp_path)
    assert list(paths) == names[:4]
    stems = [path.stem for path in paths.values()]
    assert stems[2:] == ["other", "clip 1"]
    assert [stem[:5] for stem in stems[:2]] == ["film-", "Film-"]
    assert [len(stem) for stem in stems[:2]] == [13, 13]
    assert feature_paths([Path("a/film.mp4")], tmp_path) == {"a/film.mp4": tmp_path / "film.safetensors"}


def test_names_that_are_too_long_for_what_stands_beside_them(clips, tmp_path):
    video = tmp_path / f"{'é' * 124}.mp4"
    shutil.copy(clips[0], video)
    [path] = extract(video, tmp_path / "out").written
    assert len(path.name.encode()) < 240
    assert len(extract(video, tmp_path / "out").skipped) == 1


def test_names_that_no_text_can_hold(clips, tmp_path):
    """They come from the file system, byte for byte, and from addresses."""
    video = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    shutil.copy(clips[0], video)
    addresses = ["http://[foo/", "http://127.0.0.1:1/a%00b.mp4?key=1"]
    report = extract([video, *addresses], tmp_path / "out", on_error="skip")
    path = report.files[video]
    assert re.fullmatch(r"caf-[0-9a-f]{8}\.safetensors", path.name)
    assert VideoFeatures(path).source["name"] == "caf?.mp4"
    assert extract(video, tmp_path / "out").skipped == [path]
    assert list(report.errors) == addresses
    stems = [path.stem for path in feature_paths(addresses, tmp_path).values()]
    assert [stem[:-8] for stem in stems] == ["video-", "ab-"]


def test_videos_that_fail_are_named_at_the_end(clips, tmp_path, caplog):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 1000)
    videos = [bad, clips[0], tmp_path / "missing.mp4", clips[1]]
    with pytest.raises(ValueError, match=r"(?s)2 of 4 videos failed.*bad\.mp4: .*could not be opened.*missing\.mp4: "):
        extract(videos, tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["a.safetensors", "b.safetensors"]
    report = extract(videos, tmp_path / "out", on_error="skip")
    assert list(report.errors) == [str(bad), str(tmp_path / "missing.mp4")]
    assert len(report.skipped) == len(report.files) == 2
    assert str(report).startswith("0 videos extracted, 2 there already, 2 failed; 0 frames in")


@pytest.mark.parametrize("place", ["_bytes_of", "os.fsync", "os.replace"])
def test_a_full_disk_is_no_fault_of_the_videos(clips, tmp_path, monkeypatch, place):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"llama_vid.features.{place}", full)
    with pytest.raises(OSError, match=r"out.a\.safetensors cannot be written \(.*No space left"):
        extract(clips, tmp_path / "out", on_error="skip")
    assert contents(tmp_path / "out") == {}


def test_a_source_that_fails_while_it_is_read_is_a_bad_video(clips, tmp_path, monkeypatch):
    def fail(self, pixels):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(LlamaVidVisualModel, "encode_frames", fail)
    report = extract(clips, tmp_path, on_error="skip")
    assert set(report.errors.values()) == {"[Errno 5] Input/output error"}
    assert len(report.errors) == 3


def test_checkpoints_of_another_architecture(clips, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    message = r"is of the architecture 'llava', not 'llama_vid': .* `llama-vid convert`, .* `llama-vid create`"
    with pytest.raises(ValueError, match=message):
        extract(clips, tmp_path / "out", model=tmp_path)


def test_a_video_that_changes_while_it_is_read(clips, tmp_path, monkeypatch):
    video = tmp_path / "growing.mp4"
    shutil.copy(clips[0], video)
    encode_frames = LlamaVidVisualModel.encode_frames

    def grow(self, pixels):
        with open(video, "ab") as file:
            file.write(b"more")
        return encode_frames(self, pixels)

    monkeypatch.setattr(LlamaVidVisualModel, "encode_frames", grow)
    with pytest.raises(ValueError, match="changed while it was read"):
        extract(video, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float64"}, "dtype must be one of float16, bfloat16, int8, got 'float64'"),
        ({"grid_size": 3}, r"grid_size=3 does not divide the 4 x 4 patches of a frame; possible: \[1, 2, 4\]"),
        ({"grid_size": 0}, "grid_size=0 does not divide"),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0"),
        ({"on_error": "ignore"}, 'on_error must be "raise" or "skip"'),
        ({"fps": 0}, "fps must be a positive number"),
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1"),
        ({"fps": 1, "num_frames": 2}, "mutually exclusive"),
        ({"videos": []}, "videos is empty"),
    ],
)
def test_bad_arguments(clips, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        extract(**{"videos": clips, "output": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_videos_in_memory_are_refused(tmp_path):
    with pytest.raises(TypeError, match="videos must be paths or http"):
        extract([b"bytes"], tmp_path)
