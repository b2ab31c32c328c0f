"""Turns to messages: where visuals stand, and rows with chat columns."""

from pathlib import Path

import pytest
from small_chats import assistant, system, user

from llama_vid.data.chats import build_chat, messages_of_row
from llama_vid.data.media import Media, check_media
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION

A, B = ({"type": "image", "path": f"data/{name}.jpg"} for name in "ab")
FILM = {"type": "video", "path": "data/film.mp4"}
MEDIA = Media(Path("data"))


def turns(*words: str) -> list[tuple[str, str]]:
    return [(("user", "assistant")[i % 2], turn) for i, turn in enumerate(words)]


def row_messages(**columns) -> list[dict]:
    return messages_of_row(columns, MEDIA)


@pytest.mark.parametrize(
    ("questions", "visuals", "expected"),
    [
        (["<image>1", "2"], [A], [(A, "1"), (A, "2")]),
        (["1<image>", "2<image>"], [A], [("1", A), ("2", A)]),
        (["1", "2"], [A, B], [(A, B, "1"), (A, B, "2")]),
        (["<image>1<image>", "2"], [A, B], [(A, "1", B), (A, B, "2")]),
        (["<image>1", "<image>2", "3"], [A, B], [(A, "1"), (B, "2"), (B, "3")]),
        (["1", "<image>2", "3"], [A], [("1",), (A, "2"), (A, "3")]),
        (["1", "2"], [], [("1",), ("2",)]),
    ],
)
def test_visuals_in_several_turns(questions, visuals, expected):
    first, *others = questions
    words = turns(first, "yes", *(turn for question in others for turn in (question, "yes")))
    messages = build_chat([("system", "Be good."), *words], {"image": visuals})
    assert messages[0] == system("Be good.")
    assert messages[1::2] == [user(*content) for content in expected]
    assert messages[2::2] == [assistant("yes")] * len(questions)


@pytest.mark.parametrize(
    ("questions", "number", "message"),
    [
        (["<image>", "2"], 2, "1 `<image>` placeholders for 2 images"),
        (["<image><image>", "<image>"], 2, "3 `<image>` placeholders for 2 images"),
        (["<image>", "2"], 0, "1 `<image>` placeholders for 0 images"),
    ],
)
def test_placeholders_and_visuals_that_do_not_match(questions, number, message):
    with pytest.raises(ValueError, match=message):
        build_chat(turns(questions[0], "yes", questions[1], "no"), {"image": [A] * number})


@pytest.mark.parametrize("roles", [[], ["system"], ["user"], ["user", "system", "assistant"], ["user", "tool"]])
def test_roles_out_of_order(roles):
    with pytest.raises(ValueError, match="roles are out of order"):
        build_chat((role, "words") for role in roles)


def test_a_film_is_repeated_with_its_sentences():
    messages = build_chat(
        [
            ("user", [*user(FILM_INTRODUCTION, FILM, FILM_END, "Who?")["content"]]),
            *turns("2", "A man.", "Why?", "Hay.")[1:],
        ]
    )
    assert messages[2] == user(FILM_INTRODUCTION, FILM, FILM_END, "Why?")


def test_columns_fill_placeholders_by_kind():
    messages = row_messages(
        messages=[
            {"role": "user", "content": "<video>\nWhich of <image>, <image> is in it?", "name": None},
            {"role": "assistant", "content": [{"type": "text", "text": "The first.", "path": None}]},
        ],
        images=["a.jpg", "b.jpg"],
        video="film.mp4",
    )
    assert messages == [user(FILM, "Which of", A, ",", B, "is in it?"), assistant("The first.")]


def test_keys_that_say_nothing():
    """As `datasets` fills them in, and as many data sets count their images."""
    content = [
        {"type": "image", "index": 0, "text": None, "fps": None},
        {"type": "text", "text": "Who?", "index": None},
    ]
    answer = {"role": "assistant", "content": "He.", "tool_calls": [], "reasoning_content": None, "name": "a"}
    messages = row_messages(messages=[{"role": "user", "content": content}, answer], images=["a.jpg"])
    assert messages == [user({**A, "index": 0}, "Who?"), assistant("He.")]


def test_parts_without_a_source_take_the_columns_visuals():
    content = [{"type": "text", "text": "Who?"}, {"type": "image"}, {"type": "video", "subtitles": "film.srt"}]
    messages = row_messages(
        prompt=[{"role": "user", "content": content}], completion="He.", image="a.jpg", videos=["film.mp4"]
    )
    assert messages == [user("Who?", A, {**FILM, "subtitles": "data/film.srt"}), assistant("He.")]


def test_prompts_without_placeholders_get_their_visuals_in_front():
    assert row_messages(prompt="Who?", completion="He.", images=["a.jpg"], videos=["film.mp4"]) == [
        user(FILM, A, "Who?"),
        assistant("He."),
    ]
    assert row_messages(prompt="Who?", completion="He.", images=None) == [user("Who?"), assistant("He.")]


def test_parts_keep_what_they_say():
    media = Media(Path("data"), "media", "features", "words")
    url = {"type": "image", "url": "https://example.org/a.jpg"}
    film = {"type": "video", "features": "x/film.safetensors", "times": [0.0, 1.0], "subtitles": [[0, 1, "Hello."]]}
    clip = {"type": "video", "path": "clip.mp4", "subtitles": "clip.srt"}
    picture = {"type": "image", "image": {"bytes": b"picture", "path": "a.jpg"}}
    messages = messages_of_row({"messages": [user(url, film, clip, picture, "Who?"), assistant("He.")]}, media)
    assert messages[0]["content"][:4] == [
        url,
        {**film, "features": "features/x/film.safetensors"},
        {"type": "video", "features": "features/clip.safetensors", "subtitles": "words/clip.srt"},
        {"type": "image", "image": b"picture"},
    ]


def test_addresses_that_are_none_are_files():
    media = Media(Path("data"), "media", "features")
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    film, picture = {"type": "video", "url": "film.mp4"}, {"type": "image", "url": "a.jpg"}
    messages = messages_of_row({"messages": [user(inline, film, picture, "Who?"), assistant("He.")]}, media)
    assert messages[0]["content"][:3] == [
        {"type": "image", "url": "data:image/png;base64,AAAA"},
        {"type": "video", "features": "features/film.safetensors"},
        {"type": "image", "path": "media/a.jpg"},
    ]
    assert check_media([{"messages": messages}]) == ["features/film.safetensors", "media/a.jpg"]


def test_no_key_of_a_part_names_files_elsewhere():
    for key in ("path", "image", "url"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            row_messages(messages=[user({"type": "image", key: "../a.jpg"}, "Who?"), assistant("He.")])
    for text in ("/etc/a.jpg", 5):
        with pytest.raises(ValueError, match=f"`base64` is '{text}', which is no base64"):
            row_messages(messages=[user({"type": "image", "base64": text}, "Who?"), assistant("He.")])


@pytest.mark.parametrize("text", ["cGljdHVyZQ==", "data:image/png;base64,cGljdHVyZQ=="])
def test_base64_is_content(text):
    [message, _] = row_messages(messages=[user({"type": "image", "base64": text}, "Who?"), assistant("He.")])
    assert message["content"][0] == {"type": "image", "image": b"picture"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "a"}, r"no conversation: .* are expected, not \['prompt'\]"),
        ({"messages": []}, "roles are out of order"),
        ({"messages": 5}, "turn 0 is .* a message with `role` and `content` is expected"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 0 is"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "turn 0 is"),
        ({"messages": [user("a"), {"content": "b"}]}, "turn 1 is"),
        ({"messages": [user({"type": "audio"}), assistant("b")]}, "Unknown content type 'audio'"),
        ({"messages": [user({"type": "image_url"}), assistant("b")]}, "A part of type image_url has no address"),
        ({"messages": [user({"type": "text"}), assistant("b")]}, "a part of type text of the user's has no `text`"),
        ({"messages": [user("a"), assistant("b", A)]}, "the assistant's turn has a visual: only the user's"),
        ({"messages": [user("a"), {**assistant(""), "tool_calls": [{"id": 1}]}]}, "turn 1 says .* `tool_calls`"),
        ({"messages": [user("a"), {**assistant("b"), "reasoning_content": "c"}]}, "turn 1 says .* `reasoning_content`"),
        ({"messages": [user({**FILM, "fps": 2, "nframes": 4}), assistant("b")]}, "video has `fps`, `nframes`"),
        ({"messages": [user({**A, "image": "b.jpg"}), assistant("b")]}, "image has `image` and `path`: leave all but"),
        ({"messages": [user({**A, "subtitles": "a.srt"}), assistant("b")]}, "image has `subtitles`.* known are base64"),
        ({"messages": [user(A, "a"), assistant("b")], "images": ["b.jpg"]}, "0 `<image>` placeholders for 1 images"),
        ({"prompt": "a", "completion": "b", "images": [5]}, "the name of a file is expected, found 5"),
    ],
)
def test_bad_rows(columns, message):
    with pytest.raises(ValueError, match=message):
        row_messages(**columns)
