"""Data files of every format: what becomes of their records, how those are rendered, and what is said of bad ones."""

import csv
import json
import logging

import pytest
from small_chats import DEFAULT, SYSTEM, assistant, from_messages, instructions, picture, system, text, user
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

from llama_vid.data.formats import READERS, read_records
from llama_vid.data.records import BadSampleError
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.fixture
def write(tmp_path):
    def write_file(content, name: str = "data.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file


def human(words: str) -> dict:
    return {"from": "human", "value": words}


def gpt(words: str) -> dict:
    return {"from": "gpt", "value": words}


def chat(*words: str) -> list[dict]:
    return [(human, gpt)[i % 2](turn) for i, turn in enumerate(words)]


def image(path) -> dict:
    return {"type": "image", "path": str(path)}


def video(path, **more) -> dict:
    return {"type": "video", "path": str(path), **more}


def messages_of(path, format: str, **roots) -> list[list[dict]]:
    return [record["messages"] for record in read_records(path, format, **roots)]


def only_messages(path, format: str, **roots) -> list[dict]:
    [messages] = messages_of(path, format, **roots)
    return messages


def test_llava_turns_and_visuals(write, tmp_path):
    path = write(
        [
            {"id": 1, "image": "coco/1.jpg", "conversations": chat("What is\n<image>\n here?", "A cat.")},
            {"id": 2, "conversations": [{"from": "system", "value": "Be brief."}, *chat("Hello.", "Hi.")]},
            {"id": 3, "image": ["1.jpg", "2.jpg"], "conversations": chat("<image> or <image>?", "Both.")},
            {"id": 4, "video": "v.mp4", "conversations": chat("<image>\nWhat moves?", "A cat.")},
            {"id": 5, "video": "v.mp4", "conversations": chat("What moves?\n<video>", "A cat.")},
            {"id": 6, "image": "1.jpg", "conversations": chat("No placeholder?", "None.")},
            {"id": 7, "image": "", "conversations": chat("Text?", "Yes.")},
        ]
    )
    assert messages_of(path, "llava", root=tmp_path / "media") == [
        [user("What is", image(tmp_path / "media/coco/1.jpg"), "here?"), assistant("A cat.")],
        [system("Be brief."), user("Hello."), assistant("Hi.")],
        [
            user(image(tmp_path / "media/1.jpg"), "or", image(tmp_path / "media/2.jpg"), "?"),
            assistant("Both."),
        ],
        [user(video(tmp_path / "media/v.mp4"), "What moves?"), assistant("A cat.")],
        [user("What moves?", video(tmp_path / "media/v.mp4")), assistant("A cat.")],
        [user(image(tmp_path / "media/1.jpg"), "No placeholder?"), assistant("None.")],
        [user("Text?"), assistant("Yes.")],
    ]


def test_records_say_where_they_come_from(write):
    path = write([{"id": "a", "conversations": chat("Hello.", "Hi.")}, {"conversations": chat("Hello.", "Hi.")}])
    sources = [record["source"] for record in read_records(path, "llava")]
    assert sources == [f"{path}, record 0 (id 'a')", f"{path}, record 1"]


def test_multi_turn_is_the_papers_stage_2_form(write, tmp_path, processor):
    """Every user turn shows the image, guided by its own question; the image is encoded once."""
    picture(1).save(tmp_path / "cat.png")
    conversation = chat("<image>\nWhat is it?", "A cat.", "Which colour?", "Black.")
    messages = only_messages(write([{"image": "cat.png", "conversations": conversation}]), "llava")

    end = processor.tokenizer.eos_token
    assert processor.apply_chat_template(messages) == (
        f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cat.{end}USER: <image>\nWhich colour? ASSISTANT: Black.{end}"
    )
    inputs = from_messages(processor, messages)
    assert instructions(processor, inputs) == ["what is it?", "which colour?"]
    assert len(inputs["pixel_values"]) == 1
    assert list(inputs["image_indices"]) == [0, 0]


def test_captions_are_the_papers_stage_1_form(write, tmp_path, processor):
    picture(1).save(tmp_path / "cat.png")
    path = write([{"image": "cat.png", "conversations": chat("Give a caption.\n<image>", "A cat.")}])
    messages = only_messages(path, "llava_captions")

    assert messages == [user(image(tmp_path / "cat.png")), assistant("A cat.")]
    assert processor.apply_chat_template(messages, chat_template="plain") == "<image>A cat.\n"
    inputs = from_messages(processor, messages, chat_template="plain")
    assert instructions(processor, inputs) == [DEFAULT]


def test_video_chatgpt_both_forms(write, tmp_path):
    (tmp_path / "v_2.mkv").touch()
    path = write(
        [
            {"q": "What moves?", "a": "A cat.", "video_id": "v_1"},
            {"q": "And now?", "a": "A dog.", "video_id": "v_2"},
            {"video": "activitynet/v_3.mp4", "conversations": chat("<image>\nWhat?", "A cow.", "Why?", "Hay.")},
        ]
    )
    third = video(tmp_path / "activitynet/v_3.mp4")
    assert messages_of(path, "video_chatgpt") == [
        [user(video(tmp_path / "v_1.mp4"), "What moves?"), assistant("A cat.")],
        [user(video(tmp_path / "v_2.mkv"), "And now?"), assistant("A dog.")],
        [user(third, "What?"), assistant("A cow."), user(third, "Why?"), assistant("Hay.")],
    ]


def write_csv(path, *rows: dict):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["videoid", "contentUrl", "duration", "page_dir", "name"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_webvid(tmp_path):
    (tmp_path / "000_050").mkdir()
    path = write_csv(
        tmp_path / "webvid.csv",
        {"videoid": 1, "page_dir": "000_050", "name": 'A "cat", asleep\non a roof'},
        {"videoid": 2, "page_dir": "050_100", "name": "A dog"},
    )
    assert messages_of(path, "webvid") == [
        [user(video(tmp_path / "000_050/1.mp4")), assistant('A "cat", asleep\non a roof')],
        [user(video(tmp_path / "2.mp4")), assistant("A dog")],
    ]


def test_lengths_of_webvid(write):
    rows = ["videoid,name,length", "1,A cat,70", "2,A cat,70.4", "3,A cat,", "4,A cat", "5,A cat,long", "6,A cat,nan"]
    records = read_records(write("\n".join(rows), "webvid.csv"), "webvid")
    assert [record["length"] for record in records] == [70, 70, None, None, None, None]


def test_films_are_the_papers_stage_3_form(write, tmp_path, processor):
    (tmp_path / "tt1.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello.\n")
    path = write(
        [{"id": 1, "video": "tt1", "conversations": chat("<image>\nWho speaks?", "A man.", "When?", "Early.")}]
    )
    messages = only_messages(path, "long_video_qa", features_root=tmp_path / "features", subtitles_root=tmp_path)

    film = {
        "type": "video",
        "features": str(tmp_path / "features/tt1.safetensors"),
        "subtitles": str(tmp_path / "tt1.srt"),
    }
    assert messages == [
        user(FILM_INTRODUCTION, film, FILM_END, "Who speaks?"),
        assistant("A man."),
        user(FILM_INTRODUCTION, film, FILM_END, "When?"),
        assistant("Early."),
    ]
    end = processor.tokenizer.eos_token
    assert processor.apply_chat_template(messages) == (
        f"{SYSTEM} USER: {FILM_INTRODUCTION}\n<video>\n{FILM_END}\nWho speaks? ASSISTANT: A man.{end}"
        f"USER: {FILM_INTRODUCTION}\n<video>\n{FILM_END}\nWhen? ASSISTANT: Early.{end}"
    )


def test_films_without_subtitles(write, tmp_path, caplog):
    (tmp_path / "tt1.mkv").touch()
    (tmp_path / "tt1.vtt").touch()
    path = write([{"video": name, "conversations": chat("Who?", "A man.")} for name in ("tt1", "tt2", "tt3.mp4")])
    with caplog.at_level(logging.WARNING):
        contents = [messages[0]["content"] for messages in messages_of(path, "long_video_qa")]
    assert contents == [
        [
            text(FILM_INTRODUCTION),
            video(tmp_path / "tt1.mkv", subtitles=str(tmp_path / "tt1.vtt")),
            text(FILM_END),
            text("Who?"),
        ],
        [video(tmp_path / "tt2.mp4"), text("Who?")],
        [video(tmp_path / "tt3.mp4"), text("Who?")],
    ]
    assert "no subtitles were found for the films of 2 among 3 records" in caplog.text


def test_messages_in_json_and_json_lines(write, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]},
        {"prompt": "What is it?", "completion": "A cat.", "image": "cat.png"},
    ]
    expected = [
        [user("Hello."), assistant("Hi.")],
        [user(image(tmp_path / "cat.png"), "What is it?"), assistant("A cat.")],
    ]
    assert messages_of(write(rows), "messages") == expected
    lines = "\n\n".join(map(json.dumps, rows))
    assert messages_of(write(f"\ufeff{lines}\n", "data.jsonl"), "messages") == expected


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("llava", {"image": "a.jpg"}, "no conversation: `conversations` must be a list"),
        ("llava", {"conversations": []}, "no conversation"),
        ("llava", {"conversations": [gpt("a"), human("b")]}, "turn 0 is from 'assistant', expected 'user'"),
        ("llava", {"conversations": [human("a"), human("b")]}, "turn 1 is from 'user', expected 'assistant'"),
        ("llava", {"conversations": chat("a", "b", "c")}, "the assistant must have the last word"),
        ("llava", {"conversations": [human("a"), {"from": "gpt"}]}, "turn 1 has no text as `value`, but None"),
        ("llava", {"conversations": [{"from": "bot", "value": "a"}]}, "turn 0 is from 'bot': use human, gpt or system"),
        ("llava", {"conversations": [{"from": ["human"], "value": "a"}]}, r"turn 0 is from \['human'\]"),
        ("llava", {"conversations": ["a"]}, "turn 0 is from None"),
        ("llava", {"conversations": chat("<image>", "b")}, "1 `<image>` placeholders for 0 images"),
        ("llava", {"image": ["a", "b"], "conversations": chat("<image>", "b")}, "1 `<image>` placeholders for 2"),
        ("llava", {"image": "a", "video": "b", "conversations": chat("a", "b")}, "`image` and `video` are both there"),
        ("llava", {"image": 5, "conversations": chat("a", "b")}, "the name of a file is expected, found 5"),
        ("llava", {"image": "../a.jpg", "conversations": chat("a", "b")}, "'../a.jpg' leads out of the folder"),
        ("llava_captions", {"image": "a", "conversations": chat("a", "b", "c", "d")}, "found 4 turns"),
        ("llava_captions", {"conversations": chat("a", "b")}, "a caption without `image` or `video`"),
        ("video_chatgpt", {"q": "a", "video_id": "b"}, "no conversation: .* `a` is None"),
        ("long_video_qa", {"conversations": chat("a", "b")}, "`video` must be a movie id or file name, but is None"),
        ("messages", {"text": "a"}, r"no conversation: `messages`, or .* are expected, not \['id', 'text'\]"),
    ],
)
def test_bad_records(write, format, record, message):
    path = write([{"id": "bad", **record}])
    with pytest.raises(ValueError, match=rf"data\.json, record 0 \(id 'bad'\): .*{message}"):
        messages_of(path, format)


def test_tags_of_html_are_words(write):
    conversation = chat("How do I write a <video> tag,\nand <image>?", "As <video>.\n<image> is none.")
    [messages] = messages_of(write([{"conversations": conversation}]), "llava")
    words = ["How do I write a < video> tag,\nand < image>?", "As < video>.\n< image> is none."]
    assert [message["content"] for message in messages] == [[{"type": "text", "text": text}] for text in words]


@pytest.mark.parametrize("question", ["<image> What?", "What?\n<image>", "What? <image>", "<image><image>\nWhat?"])
def test_a_visual_that_lacks_is_an_error(write, question):
    for given in ({}, {"image": None}, {"images": []}):
        with pytest.raises(ValueError, match=r"record 0: \d `<image>` placeholders for 0 images"):
            messages_of(write([{"conversations": chat(question, "a"), **given}]), "llava")
    with pytest.raises(ValueError, match=r"record 0: 1 `<image>` placeholders for 0 images"):
        messages_of(write([{"conversations": chat("Is this <image> it?", "a"), "image": ""}]), "llava")


def test_llava_visuals_by_their_plural(write, tmp_path):
    record = {"images": ["1.jpg"], "conversations": chat("What is it?", "A cat.")}
    assert only_messages(write([record]), "llava", root=tmp_path) == [
        user(image(tmp_path / "1.jpg"), "What is it?"),
        assistant("A cat."),
    ]


def test_bad_records_may_be_skipped(write, caplog):
    rows = [{"id": i, "conversations": chat("a", "b")} for i in range(150)]
    for i in range(7):
        rows[20 * i] = {"id": i, "conversations": [gpt("a"), human("b")]} if i else "no object"
    path = write(rows)
    assert len(list(read_records(path, "llava", on_bad_sample="skip"))) == 143
    assert "Skipped: " + f"{path}, record 0: this is 'no object'" in caplog.text
    assert f"{path}, record 120 (id 6): roles are out of order" in caplog.text
    assert f"Skipped 7 of 150 records, of which the last is {path}, record 149 (id 149)" in caplog.text
    with pytest.raises(BadSampleError, match=r"7 of 150 samples were skipped, more than max_skipped_share=0\.04"):
        list(read_records(path, "llava", on_bad_sample="skip", max_skipped_share=0.04))
    with pytest.raises(BadSampleError, match=r"1 of 10 samples were skipped, more than max_skipped_share=0\.05"):
        list(read_records(write(rows[:10]), "llava", on_bad_sample="skip"))  # few are counted, too


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('[{"a": 1},\n {"a": }]', "data.json", r"data\.json is not JSON: Expecting value \(line 2, column 8\)"),
        ('{"a": 1}\n{"a": 2}', "data.json", r"Extra data \(line 2, column 1\).* one record a line is called \.jsonl"),
        ('{"prompt": "a", "completion": "b"}\n{"a', "data.jsonl", r"data\.jsonl is not JSON: .* \(line 2, column 2\)"),
        ('{"a": 1}', "data.json", r"data\.json holds dict instead of a list of records"),
        ("[1]", "data.json", r"data\.json, record 0: this is 1: an object with a conversation is expected"),
        ("", "data.csv", r"data\.csv is neither \.json nor \.jsonl: only `load_mixture` reads it"),
    ],
)
def test_bad_files(write, content, name, message):
    with pytest.raises(ValueError, match=message):
        messages_of(write(content, name), "messages")


def test_files_that_are_not_utf8(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"data\.json is not UTF-8 \(invalid start byte\)"):
        messages_of(path, "llava")


def test_bad_csv(tmp_path, write):
    with pytest.raises(ValueError, match=r"captions\.csv has no column name and videoid"):
        messages_of(write("video,caption\n1,a\n", "captions.csv"), "webvid")
    path = write_csv(tmp_path / "webvid.csv", {"videoid": 1, "name": "a"}, {"videoid": 2, "name": ""})
    with pytest.raises(ValueError, match=r"webvid\.csv, line 3: `videoid` or `name` is empty"):
        messages_of(path, "webvid")


def test_unknown_formats_and_missing_files_are_errors_at_once(tmp_path):
    with pytest.raises(ValueError, match=f"`format='lava'` is unknown: use one of {', '.join(READERS)}"):
        read_records(tmp_path / "data.json", "lava")
    with pytest.raises(FileNotFoundError, match=r"Data file .*data\.json does not exist"):
        read_records(tmp_path / "data.json", "llava")
