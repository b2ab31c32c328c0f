"""Mixtures: how often which record comes, data sets of every kind in one, and what is said of bad ones."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch
from small_chats import assistant, from_messages, instructions, picture, user
from small_checkpoint import UNTRAINED
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from llama_vid.data.media import check_media
from llama_vid.data.mixture import DatasetConfig, check_lengths, load_mixture
from llama_vid.data.records import BadSampleError, to_messages


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Streams wait for Arrow's threads at their end, 5 seconds otherwise.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


@pytest.fixture
def write(tmp_path):
    """A file of chats about nothing, one for each answer."""

    def write_file(name: str, answers) -> str:
        rows = [{"prompt": "Which?", "completion": str(answer)} for answer in answers]
        (tmp_path / name).write_text(json.dumps(rows))
        return str(tmp_path / name)

    return write_file


def answers(dataset) -> list[str]:
    return [to_messages(row)[-1]["content"][0]["text"] for row in dataset]


def counts(dataset) -> list[int]:
    """How often each answer comes, sorted."""
    return sorted(Counter(answers(dataset)).values())


def test_data_sets_stand_one_after_another(write):
    configs = [DatasetConfig(write("a.json", "abc")), {"path": write("b.json", "de")}]
    dataset = load_mixture(configs, seed=0)
    assert answers(dataset) == [*"abcde"]
    assert dataset.column_names == ["messages", "attachments", "source", "kind", "length"]
    assert dataset[3]["source"].endswith("b.json, record 0")


def test_lengths_are_kept_and_asked_for(tmp_path):
    rows = [{"prompt": "Which?", "completion": "This.", "length": 12}, {"prompt": "Who?", "completion": "He."}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mixture = load_mixture([DatasetConfig(str(tmp_path / "a.jsonl"))], seed=0)
    assert mixture["length"] == [12, None]
    check_lengths(mixture.select([0]), "group_by_length")
    with pytest.raises(
        ValueError, match=r"is group_by_length, but 1 of 2 records have no `length`, .*a.jsonl, record 1"
    ):
        check_lengths(mixture, "group_by_length")


@pytest.mark.parametrize("streaming", [False, True])
def test_kinds_of_questions_are_kept(tmp_path, streaming):
    rows = [{"prompt": "Which?", "completion": "This.", "kind": "choice"}, {"prompt": "Who?", "completion": "He."}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {**rows[1], "kind": 3}])))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "b.parquet")
    for name, expected in (("a.jsonl", ["choice", None, None]), ("b.parquet", ["choice", None])):
        mixture = load_mixture([{"path": str(tmp_path / name)}], seed=0, streaming=streaming)
        assert sorted((row["kind"] for row in mixture), key=str) == sorted(expected, key=str)


def test_weights_draw_and_repeat(write):
    path = write("a.json", range(10))

    def weighted(weight: float, seed: int = 0):
        return load_mixture([DatasetConfig(path, weight=weight)], seed=seed)

    assert answers(weighted(1)) == [str(i) for i in range(10)]
    assert counts(weighted(0.3)) == [1] * 3
    assert counts(weighted(2)) == [2] * 10
    assert counts(weighted(2.5)) == [2] * 5 + [3] * 5
    assert counts(weighted(0.01)) == [1]
    assert answers(weighted(0.3)) == answers(weighted(0.3))
    assert {*map(tuple, (answers(weighted(0.3, seed)) for seed in range(5)))} != {tuple(answers(weighted(0.3)))}


def test_data_sets_draw_by_themselves(write):
    path = write("a.json", range(100))
    drawn = answers(load_mixture([DatasetConfig(path, weight=0.5), DatasetConfig(path, weight=0.5)], seed=0))
    assert drawn[:50] != drawn[50:]


def test_max_samples_are_the_first_ones(write):
    config = {"path": write("a.json", range(10)), "max_samples": 4}
    assert answers(load_mixture([config], seed=0)) == [*"0123"]
    assert sorted(answers(load_mixture([config], seed=0, streaming=True))) == [*"0123"]
    assert counts(load_mixture([{**config, "max_samples": 40}], seed=0)) == [1] * 10


def test_streams_draw_by_weight_until_all_was_seen(write):
    many, few = [f"m{i}" for i in range(300)], [f"f{i}" for i in range(10)]
    configs = [{"path": write("a.json", many), "weight": 3}, {"path": write("b.json", few), "weight": 1}]
    drawn = answers(load_mixture(configs, seed=0, streaming=True))
    assert set(drawn) == {*many, *few}
    assert sum(answer in few for answer in drawn) / len(drawn) == pytest.approx(0.25, abs=0.06)
    assert drawn == answers(load_mixture(configs, seed=0, streaming=True))
    assert drawn != answers(load_mixture(configs, seed=1, streaming=True))


def test_streams_are_shuffled_anew_in_each_epoch(write):
    stream = load_mixture([{"path": write("a.json", range(50))}], seed=0, streaming=True)
    first = answers(stream)
    stream.set_epoch(1)
    assert sorted(first) == sorted(answers(stream)) == sorted(map(str, range(50)))
    assert first != [*map(str, range(50))]
    assert first != answers(stream)


def test_streams_without_an_end(write):
    stream = load_mixture([{"path": write("a.json", range(50))}], seed=0, streaming=True, endless=True)
    drawn = answers(islice(stream, 1000))
    assert set(drawn) == {str(i) for i in range(50)}
    assert drawn[:500] != drawn[500:]


def test_streams_pass_through_data_loaders(write):
    stream = load_mixture([{"path": write("a.json", range(6))}], seed=0, streaming=True)
    loader = DataLoader(stream, batch_size=2, num_workers=1, collate_fn=list)
    assert sorted(answers(row for batch in loader for row in batch)) == [*"012345"]


def write_formats(tmp_path) -> list[dict]:
    """A data set of each kind, and the folder of a Hub repository with messages of mixed types."""
    human, gpt = {"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "He."}
    (tmp_path / "llava.json").write_text(json.dumps([{"image": "a.jpg", "conversations": [human, gpt]}]))
    (tmp_path / "films.jsonl").write_text(json.dumps({"video": "tt1", "conversations": [human, gpt]}))
    (tmp_path / "tt1.srt").touch()
    (tmp_path / "webvid.csv").write_text("videoid,page_dir,name\n7,000,A cat\n")
    (tmp_path / "hub").mkdir()
    cues = {"type": "video", "path": "a.mp4", "subtitles": [[0, 1.5, "Hello."]]}
    rows = [[user(cues, "Who?"), assistant("He.")], [{"role": "user", "content": "Hello."}, assistant("Hi.")]]
    lines = [json.dumps({"messages": messages}) for messages in rows]
    (tmp_path / "hub" / "train.jsonl").write_text("\n".join(lines))
    return [
        {"path": str(tmp_path / "llava.json"), "format": "llava"},
        {
            "path": str(tmp_path / "films.jsonl"),
            "format": "long_video_qa",
            "features_root": "features",
            "subtitles_root": tmp_path,
        },
        {"path": str(tmp_path / "webvid.csv"), "format": "webvid", "root": "videos"},
        {"path": str(tmp_path / "hub")},
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_unlike_data_sets_in_one(tmp_path, streaming):
    configs = write_formats(tmp_path)
    found = {row["source"]: to_messages(row) for row in load_mixture(configs, seed=0, streaming=streaming)}
    assert len(found) == 5
    assert found[f"{tmp_path}/hub, record 0"] == [
        user({"type": "video", "path": f"{tmp_path}/hub/a.mp4", "subtitles": [[0, 1.5, "Hello."]]}, "Who?"),
        assistant("He."),
    ]
    assert found[f"{tmp_path}/hub, record 1"] == [user("Hello."), assistant("Hi.")]
    assert check_media(load_mixture(configs, seed=0)) == [
        f"{tmp_path}/a.jpg",
        "features/tt1.safetensors",
        "videos/7.mp4",
        f"{tmp_path}/hub/a.mp4",
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_parquet_files(tmp_path, streaming):
    """In the file or beside it, as they are stored; a visual of several turns is encoded once."""
    files = [str(tmp_path / name) for name in ("cat.png", "dog.png")]
    for seed, path in enumerate(files):
        picture(seed).save(path)
    inside = {"bytes": Path(files[0]).read_bytes(), "path": None}
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]
    rows = {"messages": [chat + chat, chat], "images": [[inside], [inside, {"bytes": None, "path": files[1]}]]}
    features = {"messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}]}
    features = datasets.Features({**features, "images": datasets.List(datasets.Image())})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")

    mixture = load_mixture([{"path": str(tmp_path / "data.parquet")}], seed=0, streaming=streaming)
    twice, both = sorted(mixture, key=lambda row: row["source"])
    assert twice["attachments"] == both["attachments"] == [inside["bytes"]]
    content = to_messages(both)[0]["content"]
    assert [part["type"] for part in content] == ["image", "image", "text"]
    assert content[1] == {"type": "image", "path": files[1]}

    processor = AutoProcessor.from_pretrained(UNTRAINED)
    inputs = from_messages(processor, to_messages(twice))
    assert instructions(processor, inputs) == ["who?", "who?"]
    assert list(inputs["image_indices"]) == [0, 0]
    expected = from_messages(processor, [user({"type": "image", "path": files[0]}, "Who?")])
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])


def write_folder(folder: Path, name: str, content: bytes) -> None:
    """A folder of one file, with the metadata that `datasets` takes."""
    folder.mkdir()
    (folder / name).write_bytes(content)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "prompt": "Who?", "completion": "He."}))


# A file that nothing can decode stays what it is, too.
FILES = {"image": ("a.jpg", b"no picture"), "video": ("a.mp4", b"no film")}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_files_of_folders_are_not_decoded(tmp_path, kind, streaming):
    name, content = FILES[kind]
    write_folder(tmp_path / "train", name, content)
    [row] = load_mixture([{"path": str(tmp_path)}], seed=0, streaming=streaming)
    assert row["attachments"] == []
    assert to_messages(row) == [user({"type": kind, "path": f"{tmp_path}/train/{name}"}, "Who?"), assistant("He.")]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_files_of_archives_are_stored(tmp_path, kind, streaming):
    name, content = FILES[kind]
    write_folder(tmp_path / "train", name, content)
    shutil.make_archive(tmp_path / "zipped" / "train", "zip", tmp_path / "train")
    [row] = load_mixture([{"path": str(tmp_path / "zipped")}], seed=0, streaming=streaming)
    assert row["attachments"] == [content]
    assert json.loads(row["messages"])[0] == user({"type": kind, "attachment": 0}, "Who?")


def test_images_inside_of_messages(tmp_path):
    picture(1).save(tmp_path / "cat.png")
    content = (tmp_path / "cat.png").read_bytes()
    part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
    features = datasets.Features({"messages": [{"role": datasets.Value("string"), "content": [part]}]})
    shown = {"type": "image", "image": {"bytes": content, "path": "cat.png"}}
    rows = {"messages": [[user(shown, "Who?"), assistant("A cat.")]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")

    [row] = load_mixture([{"path": str(tmp_path / "data.parquet")}], seed=0)
    assert row["attachments"] == [content]
    messages = to_messages(row)
    assert messages[0]["content"][0]["image"].size == picture(1).size
    assert messages[1] == assistant("A cat.")


def test_changed_files_are_read_anew(write):
    """Conversions are cached, but not beyond a change of the file."""
    for rows in ("ab", "xyz"):
        assert answers(load_mixture([DatasetConfig(write("a.json", rows))], seed=0)) == [*rows]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "a", "fromat": "llava"}, "unknown key fromat: known are path, format, name, split, root"),
        ({"format": "llava"}, "A data set has no `path`"),
        ({"path": "a", "format": "lava"}, "`format='lava'` is unknown: use one of messages, llava"),
        ({"path": "a", "weight": 0}, "`weight` must be a number above 0, got 0"),
        ({"path": "a", "weight": -1.5}, "`weight` must be a number above 0, got -1.5"),
        ({"path": "a", "weight": "1e-1"}, "`weight` must be a number above 0, got '1e-1'"),
        ({"path": "a", "weight": float("nan")}, "`weight` must be a number above 0, got nan"),
        ({"path": "a", "max_samples": 0}, "`max_samples` must be a whole number of at least 1, got 0"),
        ({"path": "a.json", "split": "train[:90%]"}, r"`split` is 'train\[:90%\]', but a\.json is a file that is"),
        ({"path": "a.jsonl", "split": "test"}, r"`split` is 'test', but a\.jsonl .*: write what is for training and"),
        ({"path": "a.csv", "format": "webvid", "split": "test"}, r"`split` is 'test', but a\.csv is a file"),
        ({"path": "a.json", "name": "b"}, r"`name` is 'b', but a\.json is a file, and one data set: leave `name` out"),
        ({"path": "a.parquet", "name": "b"}, r"`name` is 'b', but a\.parquet is a file"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(ValueError, match=message):
        load_mixture([values], seed=0)


def test_no_data_sets():
    with pytest.raises(ValueError, match="`configs` is empty"):
        load_mixture([], seed=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_data_sets(write, tmp_path, streaming):
    with pytest.raises(ValueError, match=r"The data set .*a\.json has no records: check `path` and `split`"):
        list(load_mixture([{"path": write("a.json", [])}], seed=0, streaming=streaming))
    datasets.Dataset.from_dict({"prompt": [], "completion": []}).to_parquet(tmp_path / "b.parquet")
    reason = "has no records" if streaming else "cannot be loaded: .* corresponds to no data"
    with pytest.raises(ValueError, match=rf"The data set .*b\.parquet {reason}"):
        load_mixture([{"path": str(tmp_path / "b.parquet")}], seed=0, streaming=streaming)


def test_parts_of_parquet_files(tmp_path):
    rows = [{"prompt": "Which?", "completion": str(i)} for i in range(10)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for split, expected in (("train", "0123456789"), ("train[:90%]", "012345678"), ("train[90%:]", "9")):
        assert answers(load_mixture([{"path": str(tmp_path / "a.parquet"), "split": split}], seed=0)) == [*expected]
    config = {"path": str(tmp_path / "a.parquet"), "split": "train[:90%]"}
    with pytest.raises(ValueError, match=r"cannot be loaded: Bad split: train\[:90%\]"):
        load_mixture([config], seed=0, streaming=True)


def test_unknown_splits(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(ValueError, match=r"The data set .* cannot be loaded: Unknown split \"test\""):
        load_mixture([{"path": str(tmp_path), "split": "test"}], seed=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_records_say_where_they_are(tmp_path, streaming):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "<image>", "completion": "b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "b.parquet")
    for name in ("a.json", "b.parquet"):
        config = {"path": str(tmp_path / name)}
        with pytest.raises(ValueError, match=rf"{name}, record 1: 1 `<image>` placeholders for 0 images"):
            list(load_mixture([config], seed=0, streaming=streaming))
        rest = load_mixture([config], seed=0, streaming=streaming, on_bad_sample="skip", max_skipped_share=0.5)
        assert [row["source"] for row in rest] == [f"{tmp_path / name}, record 0"]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_stored(tmp_path, streaming):
    """Half of a character is its record's error; a length that is no number is none."""
    chat = {"prompt": "a", "completion": "b"}
    rows = [{**chat, "length": float("nan")}, {**chat, "length": 1e30}, {**chat, "prompt": "a \ud83d"}]
    (tmp_path / "a.json").write_text(json.dumps([*rows, {**chat, "kind": "\ud83d"}]))
    datasets.Dataset.from_list(rows[:2]).to_parquet(tmp_path / "b.parquet")
    for name in ("a.json", "b.parquet"):
        config = {"path": str(tmp_path / name)}
        skip = {"on_bad_sample": "skip", "max_skipped_share": 0.5}
        mixture = list(load_mixture([config], seed=0, streaming=streaming, **skip))
        assert sorted(row["source"] for row in mixture) == [f"{tmp_path / name}, record {i}" for i in range(2)]
        assert [row["length"] for row in mixture] == [None, None]
    with pytest.raises(ValueError, match=r"a\.json, record 2: half of a character stands behind .*a ' \('\\ud83d'"):
        list(load_mixture([{"path": str(tmp_path / "a.json")}], seed=0, streaming=streaming))


@pytest.mark.parametrize("name", ["a.json", "b.parquet"])
@pytest.mark.parametrize("number", [10, 100])
def test_too_many_bad_records(tmp_path, number, name):
    bad = number // 10
    rows = [{"prompt": "<image>" if i < bad else "a", "completion": "b"} for i in range(number)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "b.parquet")
    load = partial(load_mixture, [{"path": str(tmp_path / name)}], seed=0, on_bad_sample="skip")
    assert len(load(max_skipped_share=0.1)) == number - bad
    too_many = rf"{bad} of {number} samples were skipped, more than max_skipped_share=0\.05"
    with pytest.raises(BadSampleError, match=too_many):
        load()


def test_missing_files(tmp_path):
    for name in ("a.json", "b.parquet"):
        with pytest.raises(FileNotFoundError):
            load_mixture([{"path": str(tmp_path / name)}], seed=0)


def test_importing_leaves_datasets_alone():
    command = "import sys, llama_vid.data.mixture; print('datasets' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
