"""Batches for training: which tokens are labels, what stands in a batch, and samples that cannot be trained on."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from small_chats import THINKING, with_template
from small_checkpoint import UNTRAINED
from small_videos import pictures
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from llama_vid.composition import build_processor
from llama_vid.data.clips import write_clip
from llama_vid.data.collator import IGNORED, BadSampleError, LlamaVidDataCollator
from llama_vid.features import extract_features
from llama_vid.modeling import LlamaVidConfig, LlamaVidForConditionalGeneration, LlamaVidVideoProcessor
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES, wrap_chat_template
from llama_vid.modeling.video_features_llama_vid import encoder_fingerprint

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "x2_mixed_batch_labels"

NAMES = ("vicuna_v1", "chatml", "llama3")
# The space in front of a word is part of its token, and here not of what is marked.
SPACED = CHAT_TEMPLATES["vicuna_v1"].replace(
    "{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + ", "{{ 'ASSISTANT: ' }}{% generation %}{{ "
)
# What each turn of the assistant leaves in a prompt: its words and the end of the turn.
ENDS = {"vicuna_v1": "</s>", "chatml": "<|im_end|>", "llama3": "<|eot_id|>", SPACED: "</s>"}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", pictures(12), fps=4))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(next(pictures(1))).save(path)
    return str(path)


def user(*parts) -> dict:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def samples(clip: str, picture: str) -> list[dict]:
    """A video in two turns with subtitles, an image, a chat without visuals."""
    video = {"type": "video", "path": clip, "subtitles": [(0, 0.5, "hello"), (1.2, 1.6, "bye")]}
    return [
        {
            "messages": [
                user(video, "What is moving?"),
                assistant("A bar moves."),
                user(video, "What is said?"),
                assistant("Hello, then bye."),
            ]
        },
        {"messages": [user({"type": "image", "path": picture}, "Which colour?"), assistant("Green.")]},
        {"messages": [user("Is there any?"), assistant("No."), user("Why?"), assistant("Nobody said anything.")]},
    ]


def labelled(batch: dict, row: int, tokenizer) -> list[str]:
    """The stretches of a row that are labels, as text."""
    texts, current = [], []
    for label in [*batch["labels"][row].tolist(), IGNORED]:
        if label != IGNORED:
            current.append(label)
        elif current:
            texts.append(tokenizer.decode(current))
            current = []
    return texts


@pytest.mark.parametrize("template", [*NAMES, pytest.param(SPACED, id="space_before_mark")])
def test_labels_are_the_assistants_words(processor, clip, picture, template):
    batch = LlamaVidDataCollator(processor, chat_template=template)(samples(clip, picture))
    for row, answers in enumerate([["A bar moves.", "Hello, then bye."], ["Green."], ["No.", "Nobody said anything."]]):
        found = [text.strip().replace(" ", "") for text in labelled(batch, row, processor.tokenizer)]
        assert found == [(answer + ENDS[template]).replace(" ", "") for answer in answers]
    is_label = batch["labels"] != IGNORED
    assert (batch["labels"][is_label] == batch["input_ids"][is_label]).all()


def test_stage_1_is_the_caption_alone(processor, picture):
    sample = {"messages": [user({"type": "image", "path": picture}), assistant("The red circle moves up.")]}
    batch = LlamaVidDataCollator(processor, chat_template="plain")([sample])
    text = processor.tokenizer("The red circle moves up.\n")["input_ids"]
    images = [processor.image_token_id] * processor.image_seq_length
    assert batch["input_ids"][0].tolist() == [text[0], *images, *text[1:]]
    assert batch["labels"][0].tolist() == [IGNORED] * (1 + len(images)) + text[1:]
    request = processor.qformer_tokenizer(["Describe the image concisely."])["input_ids"]
    assert batch["qformer_input_ids"].tolist() == request


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.18"), reason="wrong before transformers 5.18")
@pytest.mark.parametrize("template", [*NAMES, pytest.param(SPACED, id="space_before_mark")])
def test_labels_are_where_transformers_sees_the_assistant(processor, clip, picture, template):
    chats = samples(clip, picture)
    batch = LlamaVidDataCollator(processor, chat_template=template)(chats)
    expected = processor.apply_chat_template(
        [chat["messages"] for chat in chats],
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["labels"] != IGNORED, expected["assistant_masks"].bool())


def test_templates_by_name(processor, clip, picture):
    templates = {"default": CHAT_TEMPLATES["vicuna_v1"], "short": CHAT_TEMPLATES["chatml"]}
    several = with_template(processor, templates)
    for name, template in ((None, "vicuna_v1"), ("short", "chatml"), ("llama3", "llama3")):
        assert LlamaVidDataCollator(several, chat_template=name).chat_template == CHAT_TEMPLATES[template]
    assert len(LlamaVidDataCollator(several)(samples(clip, picture))["labels"]) == 3
    with pytest.raises(ValueError, match="`chat_template='long'` is neither"):
        LlamaVidDataCollator(several, chat_template="long")
    several.chat_template = {"short": CHAT_TEMPLATES["chatml"]}
    with pytest.raises(ValueError, match="has no default chat template: pass `chat_template`"):
        LlamaVidDataCollator(several)


def test_templates_that_change_earlier_turns_are_said_at_once(processor, clip, picture, caplog):
    with caplog.at_level(logging.WARNING, logger="llama_vid"):
        for name in CHAT_TEMPLATES:
            LlamaVidDataCollator(processor, chat_template=name)
        assert not caplog.messages
        collator = LlamaVidDataCollator(processor, chat_template=wrap_chat_template(THINKING))
    assert "Chats of several turns cannot be trained on. The chat template does not tell" in caplog.text
    [several, single, _] = samples(clip, picture)
    [found] = labelled(collator([single]), 0, processor.tokenizer)
    assert found.replace(" ", "") == "<think>\n\n</think>\n\nGreen.</s>\n"
    with pytest.raises(ValueError, match="does not tell the assistant's words apart"):
        collator([several])


def test_templates_without_marks(processor, clip, picture):
    """What each turn adds: with ChatML that is the newline behind the turn, too."""
    chats = samples(clip, picture)
    template = CHAT_TEMPLATES["chatml"]
    for mark in ("{% generation %}", "{% endgeneration %}"):
        template = template.replace(mark, "")
    batch = LlamaVidDataCollator(processor, chat_template=template)(chats)
    marked = LlamaVidDataCollator(processor, chat_template="chatml")(chats)
    assert torch.equal(batch["input_ids"], marked["input_ids"])
    assert (batch["labels"][marked["labels"] != IGNORED] != IGNORED).all()
    found = [text.replace(" ", "") for text in labelled(batch, 0, processor.tokenizer)]
    assert found == ["Abarmoves.<|im_end|>\n", "Hello,thenbye.<|im_end|>\n"]

    moody = "{{ messages | length }}{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"does not tell the assistant's words apart.*generation"):
        LlamaVidDataCollator(processor, chat_template=moody)([chats[2]])


def test_a_batch_is_its_samples(processor, clip, picture):
    """Losses and gradients of a mixed batch are those of its samples one by one."""
    collator, chats = LlamaVidDataCollator(processor), samples(clip, picture)
    model = LlamaVidForConditionalGeneration.from_pretrained(UNTRAINED)
    whole = collator(chats)
    assert whole["pixel_values_videos"].shape[0] == 3  # two turns, one video
    assert whole["video_indices"].tolist() == [0, 0]
    loss = model(**whole, use_cache=False).loss
    alone, tokens = 0.0, 0
    for row, chat in enumerate(chats):
        single = collator([chat])
        length = single["input_ids"].shape[1]
        for name in ("input_ids", "labels"):
            assert torch.equal(single[name][0], whole[name][row, :length])
        number = int((single["labels"] != IGNORED).sum())
        alone, tokens = alone + model(**single, use_cache=False).loss * number, tokens + number
    alone = alone / tokens
    torch.testing.assert_close(loss, alone, atol=1e-5, rtol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found, expected = (torch.autograd.grad(value, trained, materialize_grads=True) for value in (loss, alone))
    assert any(gradient.any() for gradient in expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_features_and_files_in_a_batch(processor, clip, picture, tmp_path):
    """Stage 3 mixes films whose features were extracted with clips and images."""
    model = LlamaVidForConditionalGeneration.from_pretrained(UNTRAINED).eval()
    film = write_clip(tmp_path / "film.mp4", pictures(20), fps=4)
    path = str(extract_features(film, tmp_path / "features", model=UNTRAINED).written[0])
    question = "Who speaks?"
    kept = {"messages": [user({"type": "video", "features": path}, question), assistant("Nobody.")]}
    decoded = {"messages": [user({"type": "video", "path": str(film)}, question), assistant("Nobody.")]}
    collator, chats = LlamaVidDataCollator(processor), samples(clip, picture)
    mixed, plain = (collator([first, *chats]) for first in (kept, decoded))
    assert mixed["video_num_frames"].tolist() == [3, 5]  # the clip, then the film
    assert mixed["video_indices"].tolist() == [1, 0, 0]
    assert mixed["video_features"].shape[0] == 5
    with torch.no_grad():
        found, expected = (model(**batch, use_cache=False) for batch in (mixed, plain))
    torch.testing.assert_close(found.loss, expected.loss, atol=2e-4, rtol=1e-4)

    collator.encoder = encoder_fingerprint(model.model.vision_tower, model.config)
    assert torch.equal(collator([kept])["video_features"], mixed["video_features"])
    collator.encoder = "0" * 64
    with pytest.raises(BadSampleError, match=r"film.safetensors holds features of the vision tower"):
        collator([kept])


def word_tokenizer(number: int) -> PreTrainedTokenizerFast:
    """Every id is a word: `w017` is 17."""
    backend = Tokenizer(models.WordLevel({f"w{i:03}": i for i in range(number)}, unk_token="w000"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w000", bos_token="w001", eos_token="w002")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{GOLDEN.name} is kept beside the checkout only")
def test_label_masks_equal_the_recorded_ones(processor):
    case = json.loads((GOLDEN / "case.json").read_text(encoding="utf-8"))
    recorded = load_file(GOLDEN / "io.safetensors")
    size, side = case["llm_config"]["vocab_size"], case["vision_config"]["image_size"]
    config = LlamaVidConfig(
        vision_config={"model_type": "instructblip_vision_model", "image_size": side},
        text_config={"model_type": "llama", "vocab_size": size + 2},
        image_token_id=size,
        video_token_id=size + 1,
        image_grid_size=1,
    )
    template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + ' ' }}{% endgeneration %}"
        "{% elif message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
        "{% for part in message['content'] %}"
        "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}{{ ' ' }}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    words = build_processor(config, word_tokenizer(size), processor.qformer_tokenizer, chat_template=template)
    chats = [recorded_chat(case, recorded, row) for row in range(3)]
    batch = LlamaVidDataCollator(words)(chats)
    for row in range(3):
        real = recorded["expanded_attention_mask"][row].bool()
        labels = batch["labels"][row][batch["attention_mask"][row].bool()]
        assert labels.tolist() == recorded["expanded_labels"][row][real].tolist()


def recorded_chat(case: dict, recorded: dict, row: int) -> dict:
    """Ids to words: stretches with labels are the assistant's, the placeholders show the row's visual."""
    ids, labels = case["input_ids"][row], case["labels"][row]
    frames = recorded[f"pixel_values.{row}"]
    kind = "video" if frames.ndim == 4 else "image"
    visual = {"type": kind, kind: frames.clamp(0, 1).mul(255).byte()}
    messages = []
    for index in range(sum(case["attention_mask"][row])):
        role = "user" if labels[index] == IGNORED else "assistant"
        if not messages or messages[-1]["role"] != role:
            messages.append({"role": role, "content": []})
        is_visual = ids[index] == case["image_token_index"]
        messages[-1]["content"].append(visual if is_visual else {"type": "text", "text": f"w{ids[index]:03}"})
    for message in messages:
        if message["role"] == "assistant":
            message["content"] = " ".join(part["text"] for part in message["content"])
    return {"messages": messages}


# Bad samples.


def test_a_sample_that_is_too_long(processor, clip, picture):
    chats = samples(clip, picture)
    lengths = LlamaVidDataCollator(processor)(chats)["attention_mask"].sum(-1).tolist()
    limit = min(lengths) + 1
    with pytest.raises(BadSampleError, match=rf"has {lengths[0]} tokens, more than max_length={limit}: raise it"):
        LlamaVidDataCollator(processor, max_length=limit)([{**chats[0], "id": 7}])
    with pytest.raises(BadSampleError, match=r"The sample id=7, source='a\.json' has"):
        LlamaVidDataCollator(processor, max_length=limit)([{**chats[0], "id": 7, "source": "a.json"}])


@pytest.fixture
def decodings(monkeypatch) -> list[int]:
    """How many videos each call of the video processor decodes."""
    calls, preprocess = [], LlamaVidVideoProcessor.preprocess

    def counted(self, videos, **kwargs):
        calls.append(len(videos))
        return preprocess(self, videos, **kwargs)

    monkeypatch.setattr(LlamaVidVideoProcessor, "preprocess", counted)
    return calls


def test_samples_beside_a_bad_one_are_made_once_more_at_most(processor, clip, decodings):
    video = {"type": "video", "path": clip}
    good, bad = ({"messages": [user(video, "What?" * times), assistant("No.")]} for times in (1, 100))
    collator = LlamaVidDataCollator(processor, max_length=100, on_bad_sample="skip")
    collator([bad])
    assert decodings == [1]
    decodings.clear()
    batch = collator([good, bad])
    assert decodings == [1, 1, 1]  # together, and each alone
    assert torch.equal(batch["input_ids"], collator([good])["input_ids"])
    assert (collator.num_seen, collator.num_skipped) == (4, 2)


def test_bad_samples_are_skipped_counted_and_logged(processor, clip, picture, tmp_path, caplog):
    chats = samples(clip, picture)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    bad = {"messages": [user({"type": "video", "path": str(broken)}, "What?"), assistant("No.")], "id": "b"}
    with pytest.raises(BadSampleError, match=r"The sample id='b': .*broken.mp4 could not be opened as a video"):
        LlamaVidDataCollator(processor)([*chats, bad])

    collator = LlamaVidDataCollator(processor, on_bad_sample="skip")
    with caplog.at_level(logging.WARNING, logger="llama_vid"):
        batch = collator([chats[0], bad, chats[1]])
    expected = LlamaVidDataCollator(processor)([chats[0], chats[1]])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert "Skipped: The sample id='b': " in caplog.text
    assert (collator.num_seen, collator.num_skipped) == (3, 1)


def test_pictures_that_break_in_any_way_are_bad_samples(processor, picture, tmp_path):
    content = Path(picture).read_bytes()
    place = content.index(b"IDAT")
    broken = content[:place] + b"\0\0\0\0" + content[place + 4 :]
    (tmp_path / "broken.png").write_bytes(broken)
    collator = LlamaVidDataCollator(processor, on_bad_sample="skip")
    for source in (str(tmp_path / "broken.png"), "http://localhost:9/a.png"):
        assert not collator.is_good({"messages": [user({"type": "image", "path": source}, "What?"), assistant("No.")]})


def test_halves_of_characters_are_bad_samples(processor, clip):
    """The tokenizer would end the training."""
    cues = {"type": "video", "path": clip, "subtitles": [(0, 0.5, "hello \ud83d")]}
    for question in (user("Is there \ud83d any?"), user(cues, "Is there any?"), {"role": "user", "content": "\ud83d"}):
        with pytest.raises(BadSampleError, match="The sample id=5: half of a character"):
            LlamaVidDataCollator(processor)([{"id": 5, "messages": [question, assistant("No.")]}])


def test_chats_that_a_template_refuses_are_bad_samples(processor):
    template = "{% for message in messages if message['role'] == 'system' %}{{ raise_exception('No system text.') }}"
    template += "{% endfor %}" + CHAT_TEMPLATES["chatml"]
    collator = LlamaVidDataCollator(processor, chat_template=template)
    sample = {"id": 5, "messages": [user("Is there any?"), assistant("No.")]}
    assert len(collator([sample])["input_ids"]) == 1
    sample["messages"].insert(0, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]})
    with pytest.raises(BadSampleError, match="The sample id=5: No system text"):
        collator([sample])


def test_a_batch_without_a_good_sample_moves_nothing(processor):
    missing = {"messages": [user({"type": "video", "path": "missing.mp4"}, "What?"), assistant("No.")]}
    batch = LlamaVidDataCollator(processor, on_bad_sample="skip")([missing])
    assert batch["input_ids"].shape == (1, 1)
    assert batch["labels"].tolist() == [[IGNORED]]
    model = LlamaVidForConditionalGeneration.from_pretrained(UNTRAINED).train()
    projector = list(model.model.multi_modal_projector.parameters())  # which no text reaches
    for trained in (list(model.parameters()), projector):
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        # A mean over nothing, and sums over the labels of all accumulated batches, as trainers have them.
        for labels in (None, 0, 3):
            loss = model(**batch, use_cache=False, num_items_in_batch=labels).loss
            assert loss == 0 if labels else loss.isnan()
            loss.backward()
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        assert gradients
        assert not any(gradient.any() for gradient in gradients)  # NaN is not false


def test_too_many_bad_samples_end_the_training(processor):
    good = {"messages": [user("Is there any?"), assistant("No.")]}
    bad = {"messages": [user({"type": "image", "path": "missing.png"}, "What?"), assistant("No.")]}
    collator = LlamaVidDataCollator(processor, on_bad_sample="skip", max_skipped_share=0.1)
    for _ in range(9):
        collator([bad, *[good] * 9])
    collator([bad, *[good] * 9])  # a tenth is no more than a tenth
    with pytest.raises(BadSampleError, match=r"11 of 101 samples were skipped, more than max_skipped_share=0\.1"):
        collator([bad])


def test_bad_arguments(processor):
    with pytest.raises(ValueError, match='`on_bad_sample` must be "raise" or "skip", got \'ignore\''):
        LlamaVidDataCollator(processor, on_bad_sample="ignore")
