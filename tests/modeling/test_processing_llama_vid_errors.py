"""What the processor says about bad input."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_chats import (
    CAT,
    DOG,
    LONG,
    SHORT,
    from_messages,
    image,
    user,
    video,
)
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

from llama_vid.modeling import LlamaVidProcessor

NAN = np.zeros((8, 8, 3), np.float32)
NAN[0, 0, 0] = np.nan
FEATURES = torch.zeros(2, 17, 24)


@pytest.fixture(scope="module")
def processor() -> LlamaVidProcessor:
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"text": "<image><image>", "images": CAT}, r"2 `<image>` placeholders, and 1 images were given: write one"),
        ({"text": "<image>", "images": [CAT, DOG]}, r"1 `<image>` placeholders, and 2 images were given: write"),
        ({"text": "what", "images": CAT}, "0 `<image>` placeholders, and 1 images were given"),
        ({"text": "<image>"}, "1 `<image>` placeholders, and 0 images were given"),
        ({"text": "<image>", "images": []}, "1 `<image>` placeholders, and 0 images were given"),
        ({"text": "<image>", "videos": SHORT}, "1 `<image>` placeholders, and 0 images were given"),
        ({"text": "<video><video>", "videos": [SHORT]}, "2 `<video>` placeholders, and 1 videos were given"),
        ({"text": "what", "videos": [SHORT]}, "0 `<video>` placeholders, and 1 videos were given"),
        ({"text": "<video>", "video_features": [FEATURES] * 2}, "1 `<video>` placeholders, and 2 videos were given"),
        # by sample
        (
            {"text": ["<image>", "<image><image>"], "images": [[CAT], [DOG]]},
            r"3 `<image>` placeholders, and 2 images were given \(first in sample 1: 2 and 1\)",
        ),
        (
            {"text": ["<image>", "<image>"], "images": [[CAT, DOG], []]},
            r"2 `<image>` placeholders, and 2 images were given \(first in sample 0: 1 and 2\)",
        ),
        (
            {"text": ["a", "<video>", "<video>"], "videos": [[], [SHORT, LONG], []]},
            r"2 `<video>` placeholders, and 2 videos were given \(first in sample 1: 1 and 2\)",
        ),
        (
            {"text": ["<image>", "<image><image>"], "images": [CAT, DOG]},
            "3 `<image>` placeholders, and 2 images were given: ",
        ),
        (
            {"text": ["<video>", "<video><video>"], "video_features": [FEATURES, FEATURES]},
            "3 `<video>` placeholders, and 2 videos were given: ",
        ),
        ({"text": []}, "`text` is an empty batch: pass at least one prompt"),
        ({}, "needs at least one of `images`, `text` and `videos`"),
        ({"text": "<image><image>", "images": [CAT, NAN]}, r"Image 1 has values that are not finite \(NaN"),
        ({"text": "what", "audio": np.zeros(9)}, "`audio` was given, but LLaMA-VID takes images, videos and text"),
        (
            {"text": "<video>", "videos": SHORT, "video_features": [FEATURES]},
            "1 `videos` were given, and `video_features` is `None` for 0 placeholders: leave `videos` out, or write",
        ),
        ({"text": "<video>", "video_features": [FEATURES[0]]}, r"tensors of shape \(num_frames.*got \(17, 24\)"),
        ({"text": "<video>", "video_features": [FEATURES[:0]]}, r"tensors of shape \(num_frames.*got \(0, 17, 24\)"),
        ({"text": "<video>", "video_features": [3]}, r"tensors of shape \(num_frames.*got int"),
        (
            {"text": "<image> one two", "images": CAT, "truncation": True, "max_length": 10},
            "Mismatch in `image` token count.*disable truncation or increase `max_length`",
        ),
        (
            {"text": ["a", "<video> b"], "videos": SHORT, "truncation": True, "max_length": 5},
            r"Mismatch in `video` token count.*ids=\[0, [34]\] and text=\[0, 6\]",
        ),
        ({"text": "<image>", "images": "/missing/cat.png"}, "Image '/missing/cat.png' cannot be read: check that"),
        (
            {"text": "<image><image>", "images": [CAT, DOG], "instructions": ["one"]},
            "1 `instructions` were given for 2 placeholders",
        ),
        ({"text": "what", "instructions": ["one"]}, "1 `instructions` were given for 0 placeholders"),
        (
            {"text": ["<image>", "<image>"], "images": [CAT, DOG], "instructions": [["one", "two"], []]},
            r"samples of `instructions` have \[2, 0\] of them for \[1, 1\] placeholders",
        ),
        ({"text": ["<s>one", "two"]}, "1 of 2 prompts in `text` start with `<s>`, the others do not"),
    ],
)
def test_bad_calls(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        processor(**kwargs)


def test_text_that_is_no_string(processor):
    with pytest.raises(TypeError, match="`text` must be a string or a list of strings"):
        processor(text=[["what", "is"]])


def test_files_that_are_no_images(processor, tmp_path):
    (tmp_path / "words.png").write_text("no image")
    for key in ("path", "image", "url"):
        with pytest.raises(
            ValueError, match=r"Image '.*words.png' cannot be read: check that it exists and is an image"
        ):
            from_messages(processor, [user(image(str(tmp_path / "words.png"), key), "what")])


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "`conversation` is empty"),
        ([[user("one")], []], "`conversation` is empty, or one of its batch is"),
        ([user({"type": "image"}, "one")], "1 `<image>` placeholders, and 0 images were given"),
        ([user(image(), "<image> one")], "2 `<image>` placeholders, and 1 images were given"),
        (
            [[user(image(), "one")], [user({"type": "image"}, image(), "two")]],
            r"3 `<image>` placeholders, and 2 images were given \(first in sample 1: 2 and 1\)",
        ),
        (
            [user({"type": "audio", "path": "song.mp3"})],
            "Unknown content type 'audio' in a message: use text, image or",
        ),
        (
            [user(image(), "one"), SimpleNamespace(role="user", content="one")],
            "A message is a SimpleNamespace: pass dict",
        ),
        ([SimpleNamespace(role="user", content="one")], "A message is a SimpleNamespace: pass"),
        ([user({"type": "image_url"})], "A part of type image_url has no address as `image_url`, but None"),
        ([user({"type": "image_url", "image_url": {"detail": "low"}})], "image_url has no address as .*, but None"),
        ([user({"type": "image_url", "image_url": ["a.jpg"]})], r"no address as `image_url`, but \['a.jpg'\]"),
        ([user({"text": "one"})], "Unknown content type None in a message"),
        ([{"role": "user", "content": ["one"]}], "A part of a message is 'one': pass dictionaries"),
        (
            [user({**video(), "features": FEATURES}, "one")],
            "1 `videos` were given, and `video_features` is `None` for 0",
        ),
        ([user({"type": "video"}, video(FEATURES, "features"), "one")], "0 `videos` were given, .* `None` for 1"),
    ],
)
def test_bad_messages(processor, conversation, message):
    with pytest.raises(ValueError, match=message):
        from_messages(processor, conversation, padding=True)


def test_missing_videos_are_named(processor):
    with pytest.raises(FileNotFoundError, match=r"missing.mp4 does not exist"):
        from_messages(processor, [user(video("missing.mp4", "path"), "one")])
