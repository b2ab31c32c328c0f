# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Chat templates, with `{% generation %}` marks, and how to find a template's user turns in a rendered prompt."""

import os
from collections.abc import Callable

from jinja2 import TemplateError

# A message's content as one string: its parts joined by a newline, visuals as their placeholders.
_CONTENT = """\
{%- macro content_of(message) -%}
{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}
{%- for part in message['content'] -%}
{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
{%- if part['type'] == 'image' -%}{{ '<image>' }}
{%- elif part['type'] == 'video' -%}{{ '<video>' }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- else -%}{{ raise_exception('Unknown content type ' ~ part['type'] ~ ': use text, image or video.') }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""

_UNKNOWN_ROLE = """\
{%- macro unknown_role(message) -%}
{{ raise_exception('Unknown role ' ~ message['role'] ~ ': use system, user or assistant.') }}
{%- endmacro -%}
"""

# Vicuna v1, the format of the released checkpoints (paper, training settings).
_VICUNA_V1 = (
    _CONTENT
    + _UNKNOWN_ROLE
    + """\
{%- set default_system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the user's questions." -%}
{%- if messages[0]['role'] != 'system' -%}{{ default_system + ' ' }}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ content_of(message) + ' ' }}
{%- elif message['role'] == 'user' -%}{{ 'USER: ' + content_of(message) + ' ' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + content_of(message) + eos_token }}{% endgeneration %}
{%- else -%}{{ unknown_role(message) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
)

# Stage 1: the visual and its caption, without roles; the request goes to the text decoder only.
_PLAIN = (
    _CONTENT
    + _UNKNOWN_ROLE
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- for text in content_of(message).split('<')[1:] -%}
{%- if text.startswith('image>') -%}{{ '<image>' }}{%- elif text.startswith('video>') -%}{{ '<video>' }}{%- endif -%}
{%- endfor -%}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{ content_of(message) + '\\n' }}{% endgeneration %}
{%- elif message['role'] != 'system' -%}{{ unknown_role(message) }}
{%- endif -%}
{%- endfor -%}
"""
)

_CHATML = (
    _CONTENT
    + """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ content_of(message) + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else -%}{{ content_of(message) + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
)

_LLAMA3 = (
    _CONTENT
    + """\
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ content_of(message) + '<|eot_id|>' }}{% endgeneration %}
{%- else -%}{{ content_of(message) + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""
)

CHAT_TEMPLATES = {"vicuna_v1": _VICUNA_V1, "plain": _PLAIN, "chatml": _CHATML, "llama3": _LLAMA3}


def find_chat_template(template: str | dict[str, str] | None) -> str | dict[str, str] | None:
    """
    A Jinja template as it is, or one of ours by its name.

    Args:
        template (`str` or `dict[str, str]`, *optional*):
            The template, or one of `"vicuna_v1"`, `"plain"`, `"chatml"`, `"llama3"`; or templates by name.

    Raises:
        ValueError: it is neither.
    """
    if template is None or isinstance(template, dict) or "{" in template:
        return template
    if template not in CHAT_TEMPLATES:
        raise ValueError(
            f"`chat_template={template!r}` is neither a Jinja template nor one of {', '.join(CHAT_TEMPLATES)}."
        )
    return CHAT_TEMPLATES[template]


def wrap_chat_template(template: str) -> str:
    """
    Let a language model's own template, which knows strings only, take messages with images and videos.

    Args:
        template (`str`): The model's Jinja template.

    Returns:
        `str`: The same template behind a preamble that turns every message's parts into one string with placeholders.
    """
    return (
        _CONTENT
        + """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set flat.messages = flat.messages + [dict(message, content=content_of(message))] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
        + template
    )


def find_user_turn_markers(render: Callable[..., str]) -> list[str] | None:
    """
    What stands right before and right after a user's words in the prompts of a template.

    Args:
        render (`Callable`): Renders a list of messages (and takes `add_generation_prompt`) to a string.

    Returns:
        `list[str]` of the marker before and the one after; `None` where the template leaves user text out (`plain`); an
        empty list where its turns cannot be told apart. A system text that a template writes into the user's turn
        counts as the user's.
    """
    question, answer = "first-probe-question", "first-probe-answer"
    next_question, next_answer = "second-probe-question", "second-probe-answer"
    first, second = ({"role": "user", "content": words} for words in (question, next_question))
    chat = render(
        [first, {"role": "assistant", "content": answer}, second, {"role": "assistant", "content": next_answer}]
    )
    alone, prompt = render([first]), render([first], add_generation_prompt=True)
    if question not in alone:
        return None
    if not all(words in chat for words in (question, answer, next_question, next_answer)):
        return []

    start = _common_suffix(chat.partition(question)[0], chat.partition(answer)[2].partition(next_question)[0])
    try:
        opening = render([{"role": "system", "content": "probe-rules"}, first]).partition(question)[0]
    except TemplateError:  # a template without system texts
        opening = start
    # The end of a BOS that looks like the end of an EOS is no part of it: a system text stands in between.
    after_system = _common_suffix(start, opening)
    start = after_system if after_system.strip() else start

    header = os.path.commonprefix(
        [chat.partition(next_question)[2].partition(next_answer)[0], prompt.partition(question)[2]]
    )
    # Vicuna has nothing at the end of a turn that no assistant follows; then its header has to do.
    end = os.path.commonprefix([header, alone.partition(question)[2]])
    end = end if end.strip() else header
    return [start, end] if start.strip() and end.strip() else []


def _common_suffix(text: str, other: str) -> str:
    return os.path.commonprefix([text[::-1], other[::-1]])[::-1]
