"""The small world as files: what lies where, that it loads, and that an interrupted world comes out whole."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

from llama_vid.data import shapes_dataset
from llama_vid.data.mixture import DatasetConfig, load_mixture
from llama_vid.data.records import to_messages
from llama_vid.data.shapes_dataset import LONG_KINDS, make_world
from llama_vid.data.shapes_questions import PICTURE_KINDS, QUESTION_KINDS
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION
from llama_vid.modeling.subtitles_llama_vid import read_subtitles

SETTINGS = {"num_videos": 6, "seed": 1, "seconds": (8, 12)}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "world"
    make_world(folder, split="train", turns=3, **SETTINGS)
    make_world(folder, split="test", images_per_video=2, **SETTINGS)
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """Everything but the lock."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def assert_same_split(folder: Path, other: Path, split: str):
    one, two = ({name: data for name, data in files(f).items() if split in name} for f in (folder, other))
    assert one == two


def located(messages: list[dict], folder: Path) -> list[dict]:
    """With absolute paths, as readers make them."""
    parts = [part for message in messages for part in message["content"]]
    paths = [{key: str(folder / part[key]) for key in ("path", "subtitles") if part.get(key)} for part in parts]
    whole = iter([{**part, **path} for part, path in zip(parts, paths, strict=True)])
    return [{**message, "content": [next(whole) for _ in message["content"]]} for message in messages]


def test_a_split_has_its_files(world):
    names = set(files(world))
    videos = {f"videos/{split}-{i:05d}.mp4" for split in ("train", "test") for i in range(6)}
    ends = ("", "-captions", "-pictures")
    listed = {"world.json", *(f"{split}{end}.jsonl" for split in ("train", "test") for end in ends)}
    pictures = {name for name in names if name.startswith("images/") and name.endswith(".png")}
    subtitles = {name for name in names if name.endswith(".srt")}
    assert names == videos | listed | pictures | subtitles
    assert len([name for name in pictures if "train" in name]) == 6
    assert len([name for name in pictures if "test" in name]) == 12
    assert 0 < len(subtitles) < 12


def test_one_question_a_record(world):
    records = read(world / "test.jsonl")
    assert len(records) == 24
    for record in records:
        user, assistant = record["messages"]
        video, question = user["content"]
        [answer] = assistant["content"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert video["path"] == record["scene"]
        assert (question["type"], answer["type"]) == ("text", "text")
        assert record["kind"] in QUESTION_KINDS
        assert record["length"] >= 2 * 8 + 16  # two tokens a second, and its words
        assert question["text"].endswith("?")
        assert len(answer["text"].split()) == 1
    asked = [(record["scene"], record["messages"][0]["content"][1]["text"]) for record in records]
    assert len(set(asked)) == 24


def test_several_turns_carry_the_video_again(world):
    records = read(world / "train.jsonl")
    assert [len(record["messages"]) for record in records] == [6, 2] * 6
    for record in records:
        users = record["messages"][::2]
        assert len(record["kind"].split(",")) == len(users)
        assert all(message["content"][0] == users[0]["content"][0] for message in users)
        assert users[0]["content"][0]["path"] == record["scene"]


def test_splits_share_no_video(world):
    pictures = [hashlib.sha256(path.read_bytes()).digest() for path in sorted(world.glob("videos/*.mp4"))]
    assert len(set(pictures)) == 12
    train, test = ({record["scene"] for record in read(world / f"{split}.jsonl")} for split in ("train", "test"))
    assert train.isdisjoint(test)


def test_captions_of_videos_images_and_single_shapes(world):
    records = read(world / "test-captions.jsonl")
    requested = [record for record in records if len(record["messages"][0]["content"]) == 2]
    for record in requested:
        [_, request], [text] = (message["content"] for message in record["messages"])
        name = re.fullmatch(r"Describe the (.+)\.", request["text"])[1]
        assert name in text["text"]
        assert " and " not in text["text"]
    assert requested

    others = [record for record in records if record not in requested]
    assert [record["messages"][0]["content"][0]["type"] for record in others] == ["video", "image", "image"] * 6
    for record in records:
        visual, [text] = record["messages"][0]["content"][0], record["messages"][1]["content"]
        assert record["kind"] == "caption"
        assert "subtitles" not in visual
        assert text["text"].endswith(".")
        assert text["text"] != "Nothing."
        if visual["type"] == "image":
            assert Image.open(world / visual["path"]).size == (112, 112)


def test_chats_about_pictures(world):
    records = read(world / "test-pictures.jsonl")
    assert len(records) == 12
    captions = {
        record["messages"][0]["content"][0]["path"]: record["messages"][1]["content"][0]["text"]
        for record in read(world / "test-captions.jsonl")
        if len(record["messages"][0]["content"]) == 1
    }
    for record in records:
        assert record["kind"] == ",".join(PICTURE_KINDS)
        asked = [message["content"] for message in record["messages"] if message["role"] == "user"]
        assert len(asked) == len(PICTURE_KINDS)
        [path] = {visual["path"] for visual, _ in asked}
        answers = [m["content"][0]["text"] for m in record["messages"] if m["role"] == "assistant"]
        assert all(answer in captions[path] for answer in answers[:2])  # a colour and a shape that are there


def test_subtitle_files_say_what_is_said(world):
    paths = {
        part["subtitles"]
        for record in read(world / "test.jsonl")
        for part in record["messages"][0]["content"]
        if "subtitles" in part
    }
    for path in paths:
        settings = json.loads((world / "world.json").read_text())["test"]
        scene, _, _ = shapes_dataset._invent(settings, int(Path(path).stem.split("-")[1]))
        cues = read_subtitles(world / path)
        assert [cue.text for cue in cues] == [line.text for line in scene.lines]
        assert [time for cue in cues for time in cue[:2]] == pytest.approx(
            [time for line in scene.lines for time in (line.start, line.end)]
        )


@pytest.mark.parametrize("name", ["test", "train", "test-captions", "test-pictures"])
def test_records_load_through_datasets_and_the_processor(world, processor, tmp_path, name):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "json", data_files=str(world / f"{name}.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    assert len(loaded) == len(read(world / f"{name}.jsonl"))
    for record in list(loaded)[:6]:
        messages = located(record["messages"], world)
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        words = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
        parts = [part for message in messages for part in message["content"]]
        assert all(part["text"] in words for part in parts if part["type"] == "text")
        placeholders = [part for part in parts if part["type"] == "video"]
        if placeholders:
            [frames] = inputs["video_num_frames"].tolist()  # encoded once
            assert 8 <= frames <= 12
            assert inputs.get("video_indices", torch.zeros(1)).tolist() == [0] * len(placeholders)
            assert (inputs["input_ids"] == processor.video_token_id).sum() == 2 * frames * len(placeholders)
        if placeholders and placeholders[0].get("subtitles"):
            assert all(cue.text in words for cue in read_subtitles(placeholders[0]["subtitles"]))


def test_a_world_follows_from_its_seed(world, tmp_path):
    make_world(tmp_path / "again", split="test", images_per_video=2, **SETTINGS)
    assert_same_split(tmp_path / "again", world, "test")

    make_world(tmp_path / "other", split="test", images_per_video=2, **{**SETTINGS, "seed": 2})
    same, other = files(world), files(tmp_path / "other")
    assert other["test.jsonl"] != same["test.jsonl"]
    assert all(other[name] != same[name] for name in other if name.endswith(".mp4"))


def test_several_processes_make_the_same_world(world, tmp_path):
    make_world(tmp_path, split="test", images_per_video=2, workers=2, **SETTINGS)
    assert_same_split(tmp_path, world, "test")


def test_an_interrupted_world_goes_on(world, tmp_path, monkeypatch):
    written = []

    def interrupted(scene, path, **kwargs):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return real(scene, path, **kwargs)

    real = shapes_dataset.write_scene
    monkeypatch.setattr(shapes_dataset, "write_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path, split="test", images_per_video=2, **SETTINGS)
    assert not list(tmp_path.glob("*.jsonl"))
    assert sorted(tmp_path.glob("videos/*.mp4")) == written

    monkeypatch.setattr(shapes_dataset, "write_scene", real)
    before = [path.stat().st_mtime_ns for path in written]
    make_world(tmp_path, split="test", images_per_video=2, **SETTINGS)
    assert [path.stat().st_mtime_ns for path in written] == before
    assert_same_split(tmp_path, world, "test")


def test_a_world_that_is_there_is_left_as_it_is(world, monkeypatch):
    monkeypatch.setattr(shapes_dataset, "_make_video", None)
    before = files(world)
    assert make_world(world, split="train", turns=3, **SETTINGS) == world / "train.jsonl"
    assert files(world) == before

    with pytest.raises(ValueError, match=r"split 'train' with other settings \(turns=3\)"):
        make_world(world, split="train", **SETTINGS)
    with pytest.raises(ValueError, match="seed=1"):
        make_world(world, split="test", images_per_video=2, **{**SETTINGS, "seed": 3})
    assert files(world) == before


def test_chosen_kinds(tmp_path):
    path = make_world(tmp_path, split="said", kinds=("said",), questions_per_video=1, images_per_video=0, **SETTINGS)
    records = read(path)
    assert [record["kind"] for record in records] == ["said"] * 6
    assert all("subtitles" in record["messages"][0]["content"][0] for record in records)


def test_long_videos_have_one_event(tmp_path, processor):
    path = make_world(
        tmp_path, split="long", num_videos=2, seed=0, seconds=(900, 1200), long=True, questions_per_video=3
    )
    settings = json.loads((tmp_path / "world.json").read_text())["long"]
    assert {record["kind"] for record in read(path)} <= set(LONG_KINDS)
    for i, video in enumerate(sorted(tmp_path.glob("videos/*.mp4"))):
        scene, asked, _ = shapes_dataset._invent(settings, i)
        assert len(asked) == 3
        assert 900 <= scene.seconds <= 1200
        assert video.stat().st_size < 200_000
        with processor.video_processor.open(str(video)) as reader:
            assert reader.num_frames == scene.seconds
            pixels = torch.cat([chunk for chunk, _ in reader.chunks])  # (frames, 3, height, width)
        # Nothing but the event differs from the first picture.
        changed = (pixels - pixels[0]).abs().amax(dim=(1, 2, 3)) > 1
        [shape] = scene.shapes
        assert changed.nonzero().flatten().tolist() == list(range(shape.appears, shape.leaves))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train-captions"}, "letters, digits"),
        ({"split": "../train"}, "letters, digits"),
        ({"num_videos": 0}, "num_videos must be at least 1, got 0"),
        ({"turns": 0}, "turns must be at least 1"),
        ({"images_per_video": -1}, "images_per_video must be at least 0"),
        ({"seconds": (4, 10)}, r"seconds must be .* from 8 on, got \[4, 10\]"),
        ({"seconds": (20, 10)}, "seconds must be"),
        ({"kinds": ("colour", "smell")}, "Unknown kinds of questions: \\['smell'\\]"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_world(tmp_path / "world", **{"split": "train", **SETTINGS, **arguments})
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(
    "arguments",
    [{"kinds": ("count",), "questions_per_video": 9}, {"kinds": ("order",), "long": True}],
    ids=["too many", "none"],
)
def test_questions_that_no_scene_has(tmp_path, arguments):
    with pytest.raises(ValueError, match="different questions of the kinds"):
        make_world(tmp_path / "world", split="train", **SETTINGS, **arguments)
    assert not (tmp_path / "world").exists()


def test_the_records_are_read_as_they_were_written(world):
    for name in ("train", "train-pictures", "train-captions"):
        path = world / f"{name}.jsonl"
        for row, record in zip(load_mixture([DatasetConfig(str(path))], seed=0), read(path), strict=True):
            kinds, paths = zip(*map(first_part, to_messages(row)[::2]), strict=True)
            expected = [first_part(message) for message in record["messages"][::2]]
            assert list(zip(kinds, paths, strict=True)) == [(kind, str(world / path)) for kind, path in expected]


def first_part(message: dict) -> tuple[str, str]:
    """Kind and path of the only visual of a turn, which stands first."""
    first, *others = message["content"]
    assert all(part["type"] == "text" for part in others)
    return first["type"], str(first["path"])


def test_films_with_subtitles_are_announced(tmp_path):
    films = {"num_videos": 6, "seed": 1, "seconds": (8, 9), "long": True, "film": True, "questions_per_video": 2}
    records = read(make_world(tmp_path, split="films", images_per_video=0, **films))
    seen = set()
    for record in records:
        [question, _] = record["messages"]
        [video] = [part for part in question["content"] if part["type"] == "video"]
        words = [part.get("text") for part in question["content"]]
        assert words[:-1] == ([FILM_INTRODUCTION, None, FILM_END] if "subtitles" in video else [None])
        seen.add("subtitles" in video)
    assert seen == {True, False}
