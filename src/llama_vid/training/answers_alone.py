"""Scoring and attending to no more than a training step needs, where the libraries' kernels for it do not run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

IGNORED = -100


@contextmanager
def answers_alone(body: nn.Module, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """
    Let TRL's loss see the positions that have a label, and the language model no padding mask, while in this context.

    TRL projects only labelled positions to the vocabulary where Triton runs, and every position elsewhere; of a video's
    prompt that is all but a few words. And behind padding on the right nothing follows that could see it, so that
    attention which is causal anyway needs no mask, without which torch's kernel skips half of the products.

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

    hooks = [
        body.register_forward_hook(keep_scored),
        body.language_model.register_forward_pre_hook(_without_right_padding, with_kwargs=True),
    ]
    try:
        yield {**inputs, "shift_labels": labels[scored].unsqueeze(0)}
    finally:
        for hook in hooks:
            hook.remove()


def _without_right_padding(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if mask is None or mask.ndim != 2 or (mask[:, 1:] > mask[:, :-1]).any():
        return args, kwargs
    # Positions that stand still, as those of padding do, would be taken for several sequences in a row.
    return args, {**kwargs, "attention_mask": None, "position_ids": None}
