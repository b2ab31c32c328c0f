"""transformers' pipelines: a batch is answered as its samples are one by one."""

import pytest
from small_chats import CAT, DOG, SHORT
from small_checkpoint import UNTRAINED
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

OPTIONS = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "return_full_text": False}


@pytest.fixture(scope="module")
def ask():
    processor = AutoProcessor.from_pretrained(UNTRAINED)
    return pipeline(
        "image-text-to-text", model=AutoModelForImageTextToText.from_pretrained(UNTRAINED), processor=processor
    )


def chat(question: str, *visuals: dict) -> list[dict]:
    return [{"role": "user", "content": [*visuals, {"type": "text", "text": question}]}]


def image(visual) -> dict:
    return {"type": "image", "image": visual}


def test_a_batch_of_pictures(ask):
    chats = [chat("Which one?", image(CAT)), chat("What is to be seen, and where does it go?", image(DOG))]
    chats.append(chat("Which one?", image(DOG)))
    alone = [ask(text=each, **OPTIONS)[0]["generated_text"] for each in chats]
    assert len(set(alone)) == 3
    assert [answers[0]["generated_text"] for answers in ask(text=chats, batch_size=3, **OPTIONS)] == alone


@pytest.mark.parametrize(
    ("visuals", "message"),
    [
        ([image(CAT), image(DOG), image(CAT)], r"`image_indices=\[0, 1, 0, 0, 1, 0\]` must name all 4 given visuals"),
        ([{"type": "video", "video": SHORT}], "adds up to 6, but 2 frames were given.*pipelines batch no videos"),
    ],
)
def test_what_they_cannot_join_is_told(ask, visuals, message):
    """Instead of answers about other samples' visuals: pictures that are given twice, and videos."""
    chats = [chat("Which one?", *visuals), chat("Which one?", *visuals)]
    assert len(ask(text=chats, **OPTIONS)) == 2
    with pytest.raises(ValueError, match=message):
        ask(text=chats, batch_size=2, **OPTIONS)
