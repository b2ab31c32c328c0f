"""Scoring no more than a training step needs, where TRL's kernels for it do not run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from llama_vid.data.collator import IGNORED


@contextmanager
def answers_alone(body: nn.Module, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """
    Let TRL's loss see no positions but those that have a label, while in this context.

    TRL projects only labelled positions to the vocabulary where Triton runs, and every position elsewhere; of a video's
    prompt that is all but a few words.

    Args:
        body (`nn.Module`): The [`LlamaVidModel`] that is trained, without its head.
        inputs (`dict[str, Any]`): A batch, with `labels` of shape `(batch_size, length)`.

    Yields:
        `dict[str, Any]`: The batch with `shift_labels` of shape `(1, labelled positions)`, which TRL takes as they are.
    """
    labels = inputs["labels"][:, 1:]
    scored = labels != IGNORED

    def keep_scored(_module: nn.Module, _args: tuple, output: Any) -> None:
        output.last_hidden_state = output.last_hidden_state[:, :-1][scored].unsqueeze(0)

    hook = body.register_forward_hook(keep_scored)
    try:
        yield {**inputs, "shift_labels": labels[scored].unsqueeze(0)}
    finally:
        hook.remove()
