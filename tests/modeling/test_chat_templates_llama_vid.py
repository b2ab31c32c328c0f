"""Chat templates: the exact prompts, foreign templates behind the wrapper, and user turns found in a prompt."""

import jinja2
import pytest
from small_chats import (
    BOS_LIKE_EOS,
    FOREIGN,
    SYSTEM,
    SYSTEM_IN_USER_TURN,
    WITH_DEFAULT_SYSTEM,
    WITHOUT_MARKERS,
    WITHOUT_SYSTEM,
)
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES, find_user_turn_markers, wrap_chat_template

CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": "Which colour?"},
    {"role": "assistant", "content": "Grey."},
]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.fixture
def render(processor):
    """Renders messages with a template or the name of one of ours."""
    return lambda template, messages, **kwargs: processor.apply_chat_template(
        messages, chat_template=template, **kwargs
    )


def markers(render, template: str):
    return find_user_turn_markers(lambda messages, **kwargs: render(template, messages, **kwargs))


@pytest.mark.parametrize(
    ("template", "prompt", "generation_prompt"),
    [
        (
            "vicuna_v1",
            f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Which colour? ASSISTANT: Grey.</s>",
            "ASSISTANT:",
        ),
        ("plain", "<image>A cat.\nGrey.\n", ""),
        (
            "chatml",
            "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
            "<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\nGrey.<|im_end|>\n",
            "<|im_start|>assistant\n",
        ),
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is it?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhich colour?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nGrey.<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_prompts(render, template, prompt, generation_prompt):
    assert render(template, CHAT) == prompt
    assert render(CHAT_TEMPLATES[template], CHAT) == prompt
    assert render(template, CHAT, add_generation_prompt=True) == prompt + generation_prompt


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        ("vicuna_v1", "Be brief. USER: <image>"),
        ("plain", "<image>A cat."),
        ("chatml", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>"),
        (
            "llama3",
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n<image>",
        ),
    ],
)
def test_own_system_message(render, template, opening):
    for content in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        prompt = render(template, [{"role": "system", "content": content}, *CHAT])
        assert prompt.startswith(opening)
        assert SYSTEM not in prompt


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_parts_keep_their_order_and_are_joined_by_newlines(render, template):
    kinds = ["text", "video", "image", "text", "video"]
    words = iter(["first", "second"])
    content = [{"type": kind, "text": next(words)} if kind == "text" else {"type": kind} for kind in kinds]
    prompt = render(template, [{"role": "user", "content": content}, CHAT[1]])
    visuals = "<video><image><video>" if template == "plain" else "first\n<video>\n<image>\nsecond\n<video>"
    assert visuals in prompt


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_placeholders_in_strings(render, template):
    parts = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "image> What is it?"}]
    string = "<video>\n<image>\nimage> What is it?"
    assert render(template, [{"role": "user", "content": string}]) == render(
        template, [{"role": "user", "content": parts}]
    )


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_the_answer_can_be_continued(render, template):
    prompt = render(template, CHAT[:2], continue_final_message=True)
    assert prompt.endswith("A cat.")


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES.values(), wrap_chat_template(WITH_DEFAULT_SYSTEM)])
def test_unknown_parts_are_refused_by_the_templates_themselves(processor, template):
    messages = [{"role": "user", "content": [{"type": "audio"}]}]
    with pytest.raises(jinja2.TemplateError, match="Unknown content type audio: use text, image or video"):
        processor.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


@pytest.mark.parametrize("template", ["vicuna_v1", "plain"])
def test_nobody_else_speaks_as_the_assistant(render, template):
    with pytest.raises(jinja2.TemplateError, match="Unknown role tool: use system, user or assistant"):
        render(template, [*CHAT[:1], {"role": "tool", "content": "four"}])


@pytest.mark.parametrize("template", FOREIGN.values(), ids=FOREIGN)
def test_wrapped_templates_take_parts(render, template):
    as_strings = [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A cat."}]
    for kwargs in ({}, {"add_generation_prompt": True}):
        expected = render(template, [*as_strings, *CHAT[2:]], **kwargs)
        assert "<image>\nWhat is it?" in expected
        assert render(wrap_chat_template(template), CHAT, **kwargs) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna_v1", ["USER: ", " ASSISTANT:"]),
        ("chatml", ["<|im_start|>user\n", "<|im_end|>\n"]),
        ("llama3", ["<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"]),
        ("plain", None),
        (WITH_DEFAULT_SYSTEM, ["<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n"]),
        (WITHOUT_SYSTEM, ["<start_of_turn>user\n", "<end_of_turn>\n"]),
        (BOS_LIKE_EOS, ["User: ", "\n\nAssistant:"]),
        (WITHOUT_MARKERS, []),
    ],
)
def test_markers_of_user_turns(render, template, expected):
    assert markers(render, template) == expected
    if template not in CHAT_TEMPLATES:
        assert markers(render, wrap_chat_template(template)) == expected


def test_markers_where_the_system_text_stands_in_the_user_turn(render):
    start, end = markers(render, SYSTEM_IN_USER_TURN)
    assert start.endswith("[INST] ")
    assert end == " [/INST]"
