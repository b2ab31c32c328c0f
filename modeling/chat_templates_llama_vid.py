# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Chat templates, with `{% generation %}` marks, and how to find a template's user turns in a rendered prompt."""

import os
from collections.abc import Callable

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

# Vicuna v1, the format of the released checkpoints (paper, training settings).
_VICUNA_V1 = (
    _CONTENT
    + """\
{%- set default_system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the user's questions." -%}
{%- if messages[0]['role'] != 'system' -%}{{ default_system + ' ' }}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ content_of(message) + ' ' }}
{%- elif message['role'] == 'user' -%}{{ 'USER: ' + content_of(message) + ' ' }}
{%- else -%}{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + content_of(message) + eos_token }}{% endgeneration %}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
)

# Stage 1: the visual and its caption, without roles; the request goes to the text decoder only.
_PLAIN = (
    _CONTENT
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- set content = content_of(message) -%}
{{ '<image>' * content.count('<image>') + '<video>' * content.count('<video>') }}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{ content_of(message) + '\\n' }}{% endgeneration %}
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
        empty list where its turns cannot be told apart.
    """
    question, answer = "first-probe-question", "first-probe-answer"
    next_question, next_answer = "second-probe-question", "second-probe-answer"
    prompt = render([{"role": "user", "content": question}], add_generation_prompt=True)
    chat = render(
        [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": next_question},
            {"role": "assistant", "content": next_answer},
        ]
    )
    if question not in prompt:
        return None
    if not all(words in chat for words in (question, answer, next_question, next_answer)):
        return []
    before_first = chat.partition(question)[0]
    before_next = chat.partition(answer)[2].partition(next_question)[0]
    after_next = chat.partition(next_question)[2].partition(next_answer)[0]
    after_last = prompt.partition(question)[2]
    start = os.path.commonprefix([before_first[::-1], before_next[::-1]])[::-1]
    end = os.path.commonprefix([after_next, after_last])
    return [start, end] if start.strip() and end.strip() else []
