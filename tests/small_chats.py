"""Small pictures and clips, chats about them, and templates of other language models: for tests of the processor."""

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from llama_vid.modeling import LlamaVidProcessor

# Of the embedded checkpoint; the instruction as its text decoder's tokenizer writes it.
IMAGE_TOKENS, FRAME_TOKENS = 17, 2
DEFAULT = "describe the image concisely."

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)

# Templates of language models, reduced to how they mark turns. They know strings only.
WITH_DEFAULT_SYSTEM = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe good.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
WITHOUT_SYSTEM = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- raise_exception('No system texts.') }}{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""
# Nothing but the header of the next turn ends a user turn, and BOS ends like EOS.
BOS_LIKE_EOS = """\
{{- '<|begin of sentence|>' }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content + '\\n\\n' }}
{%- elif message.role == 'user' %}{{- 'User: ' + message.content + '\\n\\n' }}
{%- else %}{{- 'Assistant: ' + message.content + '<|end of sentence|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"""
SYSTEM_IN_USER_TURN = """\
{{- bos_token }}
{%- for message in messages %}
{%- if loop.previtem is defined and loop.previtem.role == message.role %}
{{- raise_exception('Roles must alternate.') }}
{%- endif %}
{%- if message.role == 'user' %}
{{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.index0 == 1 and messages[0].role == 'system' else '') }}
{{- message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}"""
# Thoughts, here none, stand in the last answer alone, and not in the prompt.
THINKING = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- message.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
WITHOUT_MARKERS = "{% for message in messages %}{{ message.content }} {% endfor %}"
FOREIGN = {
    "default_system": WITH_DEFAULT_SYSTEM,
    "no_system": WITHOUT_SYSTEM,
    "bos_like_eos": BOS_LIKE_EOS,
    "system_in_user_turn": SYSTEM_IN_USER_TURN,
}


def picture(seed: int, height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)


CAT, DOG = picture(1), picture(2, height=80)
SHORT, LONG = frames(3, seed=1), frames(5, seed=2)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(visual=CAT, key: str = "image") -> dict:
    return {"type": "image", key: visual}


def video(visual=SHORT, key: str = "video") -> dict:
    return {"type": "video", key: visual}


def user(*parts) -> dict:
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def assistant(*parts) -> dict:
    return {**user(*parts), "role": "assistant"}


def system(*parts) -> dict:
    return {**user(*parts), "role": "system"}


def with_template(processor: LlamaVidProcessor, chat_template: str, **kwargs) -> LlamaVidProcessor:
    return LlamaVidProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        video_processor=processor.video_processor,
        qformer_tokenizer=processor.qformer_tokenizer,
        chat_template=chat_template,
        **{"image_seq_length": IMAGE_TOKENS, **kwargs},
    )


def from_messages(processor, messages, **kwargs) -> BatchFeature:
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **kwargs)


def from_prompt(processor, messages, add_generation_prompt: bool = False, **kwargs) -> BatchFeature:
    prompt = processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    visuals = {kind: [part[kind] for part in parts if kind in part] or None for kind in ("image", "video")}
    return processor(text=prompt, images=visuals["image"], videos=visuals["video"], return_tensors="pt", **kwargs)


def instructions(processor, inputs, kind: str = "image") -> list[str]:
    """What guides the placeholders of one kind, as the text decoder's tokenizer writes it."""
    rows = inputs.get("qformer_input_ids" if kind == "image" else "qformer_input_ids_videos", [])
    return [processor.qformer_tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def all_instructions(processor, inputs) -> list[str]:
    return instructions(processor, inputs) + instructions(processor, inputs, "video")


def token_counts(processor, inputs) -> list[tuple[int, int]]:
    ids = torch.tensor(inputs["input_ids"]) if isinstance(inputs["input_ids"], list) else inputs["input_ids"]
    return [((row == processor.image_token_id).sum(), (row == processor.video_token_id).sum()) for row in ids]


def assert_equal_inputs(inputs, expected):
    assert set(inputs) == set(expected)
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(inputs[name]), torch.as_tensor(value)), name
