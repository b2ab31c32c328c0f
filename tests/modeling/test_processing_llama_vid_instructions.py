"""The instruction that guides each visual: one rule, from messages and from rendered prompts."""

import jinja2
import pytest
import transformers
from packaging.version import Version
from small_chats import (
    CAT,
    DEFAULT,
    DOG,
    FOREIGN,
    LONG,
    SHORT,
    WITHOUT_MARKERS,
    all_instructions,
    assert_equal_inputs,
    assistant,
    from_messages,
    from_prompt,
    image,
    instructions,
    system,
    user,
    video,
    with_template,
)
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

from llama_vid.modeling import LlamaVidProcessor, processing_llama_vid
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES, wrap_chat_template
from llama_vid.modeling.messages_llama_vid import FILM_END, FILM_INTRODUCTION


@pytest.fixture(scope="module")
def processor() -> LlamaVidProcessor:
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24"), reason="does not know the option")
def test_placeholders_that_a_user_types(processor):
    """Where typed control tokens are text, they bring no visual."""
    chat = [user(image(), "what does <image> mean, or <video>?"), assistant("<image>"), user("and <image>?")]
    inputs = from_messages(processor, chat, sanitize_control_tokens=True, add_special_tokens=False)
    assert len(inputs["qformer_input_ids"]) == len(inputs["pixel_values"]) == 1
    assert (inputs["input_ids"] == processor.image_token_id).sum() == processor.image_seq_length


CHATS = {
    "one question": ([user(image(), "one")], ["one"]),
    "question before the visual": ([user("one", image())], ["one"]),
    "one visual, latest question": (
        [user(image(), "one"), assistant("x"), user("two"), assistant("y"), user("three")],
        ["three"],
    ),
    "answered": ([user(image(), "one"), assistant("x"), user("two"), assistant("y")], ["two"]),
    "a visual in every turn": (
        [user(image(), "one"), assistant("x"), user(image(DOG), "two"), assistant("y"), user(image(), "three")],
        ["one", "two", "three"],
    ),
    "two visuals in a turn": ([user(image(), image(DOG), "one"), assistant("x"), user("two")], ["two", "two"]),
    "visuals in the first and third of four turns": (
        [
            user(image(), "one"),
            assistant("x"),
            user("two"),
            assistant("y"),
            user(image(DOG), "three"),
            assistant("z"),
            user("four"),
        ],
        ["two", "four"],
    ),
    "a turn of a visual only, answered, and a question": (
        [user(image()), assistant("x"), user("one")],
        ["one"],
    ),
    "a turn of a visual only, and a question": ([user(image()), user("one")], ["one"]),
    "a turn of a visual only after a question": ([user("one"), assistant("x"), user(image())], ["one"]),
    "a question about a visual in the next turn": (
        [user(image(), "one"), assistant("x"), user(image(DOG))],
        ["one", "one"],
    ),
    "no words of the user": ([user(image())], [DEFAULT]),
    "no words of the user, an answer": ([user(image()), assistant("a cat")], [DEFAULT]),
    "words of the system and the assistant": (
        [system("be brief"), user(image()), assistant("a cat"), user(image(DOG), "one"), assistant("a dog")],
        [DEFAULT, "one"],
    ),
    "a visual of the assistant": ([user("one"), assistant(image(), "look"), user("two")], ["two"]),
    "text parts": ([user("one", image(), "two", image(DOG), "three ")], ["one two three", "one two three"]),
    "line breaks": ([user(image(), "one\ntwo\n\nthree")], ["one two three"]),
    "a film": (
        [user(FILM_INTRODUCTION, video(), FILM_END, "who wins"), assistant("x"), user("why")],
        ["why"],
    ),
    "images and videos": (
        [
            user(video(), image(), "one"),
            assistant("x"),
            user(image(DOG), "two"),
            assistant("y"),
            user(video(LONG), "three"),
        ],
        ["one", "two", "one", "three"],  # of the images, then of the videos
    ),
    "text only": ([user("one"), assistant("x"), user("two")], []),
}


@pytest.mark.parametrize(("messages", "expected"), CHATS.values(), ids=CHATS)
def test_the_instruction_is_the_last_user_turn_before_the_next_visual(processor, messages, expected):
    assert all_instructions(processor, from_messages(processor, messages)) == expected


def test_the_sentences_around_a_film_may_stand_in_one_line(processor):
    prompt = f"USER: {FILM_INTRODUCTION} <video> {FILM_END} who wins ASSISTANT:"
    assert instructions(processor, processor(text=prompt, videos=SHORT), "video") == ["who wins"]


TEMPLATES = {
    **{name: name for name in CHAT_TEMPLATES if name != "plain"},
    **{f"wrapped {name}": wrap_chat_template(template) for name, template in FOREIGN.items()},
}


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_messages_and_rendered_prompts_agree(processor, template, add_generation_prompt):
    processor = with_template(processor, template)
    for name, (messages, expected) in CHATS.items():
        try:
            inputs = from_messages(processor, messages, add_generation_prompt=add_generation_prompt)
        except jinja2.TemplateError:  # a template that refuses system texts, or roles that do not alternate
            continue
        assert all_instructions(processor, inputs) == expected, name
        if template == TEMPLATES["wrapped system_in_user_turn"] and messages[0]["role"] == "system":
            continue  # a rendered prompt does not tell whose words these are
        assert_equal_inputs(from_prompt(processor, messages, add_generation_prompt), inputs)


def test_plain_prompts_hold_no_request_but_messages_may(processor):
    processor = with_template(processor, "plain", default_instruction="caption this")
    for messages in ([user(image()), assistant("A cat.")], [user(video(), image()), assistant("A cat.")]):
        inputs = from_messages(processor, messages)
        assert set(all_instructions(processor, inputs)) == {"caption this"}
        assert_equal_inputs(from_prompt(processor, messages), inputs)
    messages = [user(image(), "What is it"), assistant("A cat.")]
    assert instructions(processor, from_messages(processor, messages)) == ["what is it"]
    assert instructions(processor, from_prompt(processor, messages)) == ["caption this"]


def test_a_template_without_markers_needs_messages_or_instructions(processor):
    processor = with_template(processor, WITHOUT_MARKERS)
    assert processor.user_turn_markers == []
    with pytest.raises(ValueError, match="user turns cannot be told apart in a rendered prompt: pass `instructions`"):
        processor(text="<image> what is it", images=CAT)
    assert instructions(processor, processor(text="<image> it", images=CAT, instructions="one")) == ["one"]
    assert "qformer_input_ids" not in processor(text="no visual")


def test_markers_follow_the_template(processor):
    """TRL's command, for one, sets another template on a processor that is loaded."""
    processor = with_template(processor, "vicuna_v1")
    processor.chat_template = CHAT_TEMPLATES["chatml"]
    assert instructions(processor, from_prompt(processor, [user(image(), "one"), assistant("yes")])) == ["one"]


def test_words_in_no_user_turn_guide_nothing_and_that_is_said(processor, monkeypatch):
    said = []
    monkeypatch.setattr(processing_llama_vid.logger, "warning_once", said.append)
    processor = with_template(processor, "vicuna_v1", default_instruction="look at this")
    assert instructions(processor, processor(text="<image>", images=CAT)) == ["look at this"]
    assert said == []
    assert instructions(processor, processor(text="<image> what is it", images=CAT)) == ["look at this"]
    assert "'look at this' guides them and not its words" in said[0]


def test_given_markers_serve_where_none_are_found(processor):
    processor = with_template(processor, WITHOUT_MARKERS, user_turn_markers=["Q: ", "A:"])
    assert instructions(processor, processor(text="<image> x Q: what A: y", images=CAT)) == ["what"]


@pytest.mark.parametrize(
    "given",
    ["one", ["one", "one", "one"], [["one", "one"], [], ["one"]]],
    ids=["string", "flat", "nested"],
)
def test_given_instructions_are_used(processor, given):
    prompts = ["USER: <image><video> a ASSISTANT:", "USER: b ASSISTANT:", "USER: <image> c ASSISTANT:"]
    inputs = processor(
        text=prompts, images=[CAT, DOG], videos=SHORT, instructions=given, padding=True, return_tensors="pt"
    )
    assert all_instructions(processor, inputs) == ["one", "one", "one"]


def test_given_instructions_go_by_the_order_of_the_placeholders(processor):
    messages = [user(video(), image(), "a"), assistant("x"), user(image(DOG), "b")]
    for kwargs in ({"instructions": ["one", "two", "three"]}, {"instructions": [["one", "two", "three"]]}):
        for inputs in (
            from_messages(processor, messages, **kwargs),
            from_messages(processor, messages, processor_kwargs=kwargs),
            from_prompt(processor, messages, **kwargs),
        ):
            assert instructions(processor, inputs) == ["two", "three"]
            assert instructions(processor, inputs, "video") == ["one"]


def test_long_instructions_keep_their_end(processor):
    messages = [user(image(), "start " + "word " * 400 + "end")]
    for inputs in (from_messages(processor, messages), from_prompt(processor, messages)):
        row = inputs["qformer_input_ids"][0].tolist()
        tokenizer = processor.qformer_tokenizer
        ending = tokenizer("end", add_special_tokens=False)["input_ids"]
        assert len(row) == 256
        assert row[0] == tokenizer.cls_token_id
        assert row[-1 - len(ending) :] == [*ending, tokenizer.sep_token_id]


def test_special_tokens_typed_by_a_user_stay_text(processor):
    tokenizer = processor.qformer_tokenizer
    row = from_messages(processor, [user(image(), "what [SEP] is [CLS] it")])["qformer_input_ids"][0].tolist()
    assert [row.count(tokenizer.cls_token_id), row.count(tokenizer.sep_token_id)] == [1, 1]
    assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert len(row) > len(tokenizer("what is it")["input_ids"])


def test_instructions_of_a_batch_are_padded_on_the_right(processor):
    inputs = from_messages(processor, [[user(image(), "a b c d")], [user(image(), "a")]], padding=True)
    assert inputs["qformer_attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
