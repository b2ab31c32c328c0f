# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers of a converted checkpoint."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, decoders, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
BERT = "bert-base-uncased"


def load_tokenizer(
    tokenizer: str | Path | None, folders: list[Path], length: int
) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """
    The language model's tokenizer.

    Args:
        tokenizer (`str` or `Path`, *optional*): Folder or Hub id; by default the first of `folders` that has one.
        folders (`list[Path]`): Of the checkpoint.
        length (`int`): Tokens that a prompt may have.

    Returns:
        The tokenizer and `None`, or `None` and what to do to have one.

    Raises:
        ImportError: if the tokenizer is a SentencePiece file and its libraries are not installed.
    """
    if tokenizer is None:
        found = [folder for folder in folders if any((folder / name).is_file() for name in TOKENIZER_FILES)]
        if not found:
            return None, "not written, no tokenizer of the language model in reach: pass tokenizer (folder or Hub id)"
        tokenizer = found[0]
    only_sentencepiece = (Path(tokenizer) / "tokenizer.model").is_file() and not (
        Path(tokenizer) / "tokenizer.json"
    ).is_file()
    # find_spec of a submodule imports its parent, which may be missing.
    if only_sentencepiece and not (find_spec("sentencepiece") and find_spec("google") and find_spec("google.protobuf")):
        raise ImportError(f"`{tokenizer}` is a SentencePiece tokenizer: pip install sentencepiece protobuf.")
    # Left is the side that generation needs in batches.
    loaded = like_sentencepiece(AutoTokenizer.from_pretrained(tokenizer, padding_side="left", model_max_length=length))
    if loaded.pad_token is None:
        loaded.pad_token = loaded.unk_token or loaded.eos_token
    return loaded, None


def like_sentencepiece(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """
    Llama's SentencePiece model writes a space before every text, and the original tokenizes what follows a placeholder
    or `</s>` as a text of its own. transformers does so or not depending on class, version and a `legacy` flag that it
    does not always save; a plain fast tokenizer that says it in its own steps is read back the same everywhere.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in Python have none
    if backend is None or "▁" not in f"{backend.normalizer}{backend.pre_tokenizer}":
        return tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=tokenizer.padding_side,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **tokenizer.special_tokens_map,
    )


def load_qformer_tokenizer(
    qformer_tokenizer: str | Path | None, folder: Path
) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """
    The tokenizer of the instructions: the one given, `bert-base-uncased` in the checkpoint's `folder`, or on the Hub.

    Returns:
        The tokenizer and `None`, or `None` and what to do to have one.
    """
    if qformer_tokenizer is None and (folder / BERT).is_dir():
        qformer_tokenizer = folder / BERT
    if qformer_tokenizer is not None:
        return AutoTokenizer.from_pretrained(qformer_tokenizer), None
    try:
        return AutoTokenizer.from_pretrained(BERT), None
    except OSError:  # no network, and not in the cache
        return None, f"not written, {BERT} is neither in `{folder}` nor to be had from the Hub: pass qformer_tokenizer"


@dataclass
class Vocabulary:
    """Rows of the embedding with the placeholders, the placeholders' ids, and what a person should know."""

    size: int
    image_token_id: int
    video_token_id: int
    notes: list[str]


def extend_vocabulary(rows: int, tokenizer: PreTrainedTokenizerBase | None) -> Vocabulary:
    """
    Append `<image>` and `<video>` to the vocabulary, and to the tokenizer where there is one, under the same ids.

    Args:
        rows (`int`): Of the original's embedding.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Changed in place.

    Raises:
        ValueError: if the tokenizer's ids have gaps, so that it counts otherwise.
    """
    known = {} if tokenizer is None else tokenizer.get_vocab()
    used = max(known.values(), default=-1) + 1
    size, notes, ids = max(rows, used), [], []
    if used > rows:
        notes.append(f"the tokenizer has {used} tokens, the embedding {rows} rows: the others begin as the mean row")
    if tokenizer is not None and used < rows:
        notes.append(f"the embedding has {rows} rows, the tokenizer {used} tokens: reserved tokens fill the gap")
        reserved = [AddedToken(f"<reserved_{i}>", special=True, normalized=False) for i in range(used, rows)]
        tokenizer.add_tokens(reserved, special_tokens=True)
    for token in (IMAGE_TOKEN, VIDEO_TOKEN):
        ids.append(known.get(token, size))
        size = max(size, ids[-1] + 1)
        if tokenizer is not None:
            tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
            if tokenizer.convert_tokens_to_ids(token) != ids[-1]:
                raise ValueError(f"The tokenizer gives {token} another id than {ids[-1]}: its ids have gaps.")
    return Vocabulary(size, *ids, notes)
