"""Records to rows of one type, and back to what the processor takes."""

import io

import pytest
import torch
from PIL import EpsImagePlugin, ExifTags, Image
from small_chats import assistant, from_messages, image, picture, user
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

from llama_vid.data.records import good_records, make_record, row_features, to_messages, to_row


def encoded(image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def stored(*messages: dict) -> dict:
    return row_features().encode_example(to_row({"messages": list(messages), "source": "here"}))


def test_messages_come_back_as_they_were():
    film = {"type": "video", "features": "film.safetensors", "subtitles": [[0.5, 1.25, "Grüße <image>"]]}
    messages = [user({"type": "image", "path": "a.jpg"}, film, "Who?"), assistant("He.")]
    row = stored(*messages)
    assert row["source"] == "here"
    assert row["attachments"] == []
    assert to_messages(row) == messages
    assert to_messages({"messages": messages}) == messages


def test_attachments_are_stored_once_and_shown_as_one_object():
    content, clip = encoded(picture(1)), b"film"
    shown = [{"type": "image", "image": content}, {"type": "video", "video": clip, "subtitles": "a.srt"}]
    row = stored(user(*shown, "Who?"), assistant("He."), user(*shown, "Why?"), assistant("Hay."))
    assert row["attachments"] == [content, clip]

    messages = to_messages(row)
    (first, film, _), (again, film_again, _) = messages[0]["content"], messages[2]["content"]
    assert first["image"] is again["image"]
    assert film == film_again == {"type": "video", "video": clip, "subtitles": "a.srt"}
    assert film["video"] is film_again["video"]


def test_attached_images_equal_files(tmp_path):
    content = encoded(picture(1).convert("L"))
    (tmp_path / "a.png").write_bytes(content)
    attached = to_messages(stored(user({"type": "image", "image": content}, "Who?"), assistant("He.")))

    processor = AutoProcessor.from_pretrained(UNTRAINED)
    expected = from_messages(processor, [user(image(str(tmp_path / "a.png"), "path"), "Who?"), assistant("He.")])
    assert torch.equal(from_messages(processor, attached)["pixel_values"], expected["pixel_values"])


def test_attached_images_are_upright():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turned by 90 degrees
    content = encoded(picture(1), "JPEG", exif=exif)
    [message] = to_messages(stored(user({"type": "image", "image": content})))
    assert message["content"][0]["image"].size == picture(1).size[::-1]


def test_damaged_attachments():
    row = stored(user({"type": "image", "image": b"no picture"}, "Who?"), assistant("He."))
    with pytest.raises(ValueError, match=r"attached image 0 cannot be read \(10 bytes\): repair it"):
        to_messages(row)


def test_no_attachment_starts_a_program(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("Ghostscript was started"))
    row = stored(user({"type": "image", "image": encoded(picture(1), "EPS")}, "Who?"), assistant("He."))
    with pytest.raises(ValueError, match="attached image 0 cannot be read"):
        to_messages(row)


@pytest.mark.parametrize("length", [float("nan"), float("inf"), 2**63, "12", None])
def test_lengths_that_are_none(length):
    assert make_record("here", list, {"length": length})["length"] is None


def test_halves_of_characters_are_the_records_error():
    whole, half = "q \U0001f600", "q \ud83d"
    cues = {"type": "video", "path": "a.mp4", "subtitles": [[0, 1, half]]}
    for content in (half, cues, {"type": "image", "path": half}):
        record = make_record("here", lambda content=content: [user(content, "Who?"), assistant("He.")], {})
        with pytest.raises(ValueError, match=r"^here: half of a character stands behind '.*q ' \('\\ud83d', of an"):
            list(good_records([record]))
    good = make_record("here", lambda: [user({"type": "image", "image": b"\xff"}, whole), assistant("He.")], {})
    assert list(good_records([good])) == [good]


def test_errors_begin_with_the_record():
    record = make_record("data.json, record 3", lambda: int("x"), {})
    with pytest.raises(ValueError, match=r"^data\.json, record 3: invalid literal"):
        list(good_records([record]))
