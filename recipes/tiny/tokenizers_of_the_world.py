"""Tokenizers for the small world: one like Vicuna's, one like BERT's."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast


def llm_tokenizer(sentences: list[str], vocabulary: int = 900) -> PreTrainedTokenizerFast:
    """A tokenizer like Vicuna's: BPE over "▁", bytes to fall back on, "▁" before what follows a special token, BOS."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Words are learned without their punctuation: a circle is the same with and without a question mark.
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Punctuation("isolated")])
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    backend.train_from_iterator(sentences, trainer)
    # The trainer marks every given token as special; bytes are ordinary ones.
    backend = Tokenizer(backend.model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
        model_max_length=4096,
    )


def bert_tokenizer(sentences: list[str]) -> BertTokenizer:
    """A BERT tokenizer (lower-cased): every word of the sentences, and single characters for the others."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    texts = [normalizer.normalize_str(sentence) for sentence in sentences]
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    characters = sorted({character for word in words for character in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    pieces += sorted(words.difference(pieces))
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=512)
