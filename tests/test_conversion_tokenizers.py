# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers and processor of converted checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from original_checkpoints import LLM_ROWS, convert, write_bert_tokenizer, write_original, write_tokenizer
from transformers import AutoProcessor, AutoTokenizer

from llama_vid import conversion_tokenizers
from llama_vid.conversion import convert_checkpoint


@pytest.fixture
def source(tmp_path) -> Path:
    return write_original(tmp_path / "source")


def test_without_a_tokenizer_in_reach_the_report_says_what_to_pass(source, tmp_path):
    report, _ = convert(source, tmp_path / "output")
    assert not report.processor_written
    assert "pass tokenizer" in report.processor_note
    assert not (tmp_path / "output" / "processor_config.json").exists()


def test_without_the_hub_the_report_asks_for_the_instruction_tokenizer(source, tmp_path, monkeypatch):
    load = AutoTokenizer.from_pretrained

    def offline(name, **kwargs):
        if name == "bert-base-uncased":
            raise OSError("We couldn't connect")
        return load(name, **kwargs)

    write_tokenizer(source, ["what", "is"])
    monkeypatch.setattr(conversion_tokenizers.AutoTokenizer, "from_pretrained", offline)
    report, model = convert(source, tmp_path / "output")
    assert not report.processor_written
    assert "pass qformer_tokenizer" in report.processor_note
    assert model.config.text_config.vocab_size == LLM_ROWS + 2


@pytest.mark.parametrize("number", [4, 47, 60])
def test_ids_of_tokenizer_and_embedding_agree(source, tmp_path, number):
    """A tokenizer with fewer tokens than the embedding has rows (a padded vocabulary), as many, or more."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer", [f"word{i}" for i in range(number)])
    bert = write_bert_tokenizer(tmp_path / "bert")
    report, model = convert(source, tmp_path / "output", tokenizer=tokenizer, qformer_tokenizer=bert)
    assert report.processor_written
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    size = max(LLM_ROWS, 3 + number)
    ids = processor.tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    assert ids == [size, size + 1] == [model.config.image_token_id, model.config.video_token_id]
    assert model.config.text_config.vocab_size == len(processor.tokenizer) == size + 2
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(embedding[LLM_ROWS:], embedding[:LLM_ROWS].mean(dim=0).expand(size + 2 - LLM_ROWS, -1))
    assert bool(report.notes) == (number != 47)


def test_placeholders_that_the_tokenizer_has_keep_their_ids(source, tmp_path):
    write_tokenizer(source, ["<image>", "word", "<video>"])
    bert = write_bert_tokenizer(tmp_path / "bert")
    report, model = convert(source, tmp_path / "output", qformer_tokenizer=bert)
    assert report.processor_written
    assert (model.config.image_token_id, model.config.video_token_id) == (3, 5)
    assert model.config.text_config.vocab_size == LLM_ROWS
    assert AutoProcessor.from_pretrained(tmp_path / "output").tokenizer.convert_tokens_to_ids("<video>") == 5


@torch.no_grad()
def test_the_processor_feeds_the_model(source, tmp_path):
    write_tokenizer(source, ["USER:", "ASSISTANT:", "what", "is"])
    write_bert_tokenizer(source / "bert-base-uncased")
    _, model = convert(source, tmp_path / "output")
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert (processor.image_seq_length, processor.frame_seq_length) == (2, 2)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=text, images=torch.rand(3, 50, 30), return_tensors="pt", do_rescale=False)
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert (inputs["input_ids"] == LLM_ROWS).sum() == 2
    assert model(**inputs).logits.isfinite().all()
    frames = processor.video_processor(torch.randint(0, 255, (3, 3, 40, 30), dtype=torch.uint8))
    assert frames["pixel_values_videos"].shape == (3, 3, 28, 28)


@pytest.mark.parametrize(("settings", "pads"), [({}, True), ({"image_aspect_ratio": "square"}, False)])
def test_images_become_squares_as_they_did(tmp_path, settings, pads):
    source = write_original(tmp_path / "source", **settings)
    write_tokenizer(source, ["word"])
    write_bert_tokenizer(source / "bert-base-uncased")
    report, _ = convert(source, tmp_path / "output")
    assert AutoProcessor.from_pretrained(tmp_path / "output").image_processor.do_pad is pads
    assert ("cropped to squares, not padded: image_aspect_ratio is 'square'" in str(report)) is not pads


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({}, 64),
        ({"tokenizer_model_max_length": 128}, 128),
        ({"rope_scaling": {"type": "linear", "factor": 16.0}}, 1024),
    ],
)
def test_prompts_may_be_as_long_as_the_model_can_read(tmp_path, settings, length):
    source = write_original(tmp_path / "source", **settings)
    write_tokenizer(source, ["word"])
    write_bert_tokenizer(source / "bert-base-uncased")
    convert(source, tmp_path / "output")
    assert AutoTokenizer.from_pretrained(tmp_path / "output").model_max_length == length


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory) -> Path:
    """A tiny model with Llama's settings: byte-pair encoding, byte fallback, a space before every text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = tmp_path_factory.mktemp("sentencepiece")
    texts = ["USER: what is in the image? ASSISTANT: a dog and a cat", "how many people are in the video"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 5),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("beside_checkpoint", [True, False])
def test_text_after_a_placeholder_is_tokenized_like_the_start_of_a_string(
    source, tmp_path, sentencepiece_model, legacy, beside_checkpoint
):
    from sentencepiece import SentencePieceProcessor

    folder = source if beside_checkpoint else tmp_path / "tokenizer"  # transformers picks another class beside llava
    folder.mkdir(exist_ok=True)
    shutil.copyfile(sentencepiece_model, folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "padding_side": "right"}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings |= {} if legacy is None else {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    bert = write_bert_tokenizer(tmp_path / "bert")
    convert(source, tmp_path / "output", tokenizer=None if beside_checkpoint else folder, qformer_tokenizer=bert)

    tokenizer = AutoProcessor.from_pretrained(tmp_path / "output").tokenizer
    pieces = SentencePieceProcessor(str(sentencepiece_model))
    image = tokenizer.convert_tokens_to_ids("<image>")
    for text in ("USER: <image>\nwhat is in the image? ASSISTANT:", "<image>a dog", "a <image> cat", "  a dog"):
        expected = [1]
        for i, part in enumerate(text.split("<image>")):
            expected += ([image] if i else []) + pieces.encode(part)
        assert tokenizer(text)["input_ids"] == expected
    expected = [1, *pieces.encode("a dog"), 2, *pieces.encode("USER: how")]
    assert tokenizer("a dog</s>USER: how")["input_ids"] == expected
    assert tokenizer.decode(pieces.encode("a dog and a cat")) == "a dog and a cat"
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<unk>")


def test_a_sentencepiece_tokenizer_asks_for_its_libraries(source, tmp_path, monkeypatch):
    (source / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(conversion_tokenizers, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install sentencepiece protobuf"):
        convert_checkpoint(source, tmp_path / "output")
