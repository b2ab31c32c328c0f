"""The processor: tokens of visuals, what is encoded once, prompts, forms of calls, saving and loading."""

import base64
import copy
import shutil
from io import BytesIO

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from small_chats import (
    CAT,
    DEFAULT,
    DOG,
    FOREIGN,
    FRAME_TOKENS,
    IMAGE_TOKENS,
    LONG,
    SHORT,
    SYSTEM,
    assert_equal_inputs,
    assistant,
    frames,
    from_messages,
    from_prompt,
    image,
    instructions,
    system,
    token_counts,
    user,
    video,
    with_template,
)
from small_checkpoint import UNTRAINED
from transformers import AutoProcessor

from llama_vid.data.clips import write_clip
from llama_vid.modeling import LlamaVidProcessor
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES, wrap_chat_template

MASKS = Version(transformers.__version__) >= Version("5.18")


@pytest.fixture(scope="module")
def processor() -> LlamaVidProcessor:
    return AutoProcessor.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """Three seconds, 12 frames."""
    return str(write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames(12), fps=4))


@pytest.fixture(scope="module")
def picture_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("picture") / "cat.png"
    CAT.save(path)
    return str(path)


def runs(ids: list[int]) -> list[tuple[int, int]]:
    """Token ids and how often each is repeated in a row."""
    counted = []
    for token in ids:
        if counted and counted[-1][0] == token:
            counted[-1] = (token, counted[-1][1] + 1)
        else:
            counted.append((token, 1))
    return counted


# Expansion


@pytest.mark.parametrize(
    ("prompt", "visuals", "counts"),
    [
        ("<image>", {"images": CAT}, (1, 0)),
        ("<image><image>", {"images": [CAT, DOG]}, (2, 0)),
        ("<video>", {"videos": SHORT}, (0, 3)),
        ("<video> and <video>", {"videos": [SHORT, LONG]}, (0, 8)),
        ("<image> <video> <image>", {"images": [CAT, DOG], "videos": LONG}, (2, 5)),
        ("no visual", {}, (0, 0)),
    ],
)
@pytest.mark.parametrize("return_tensors", [None, "pt", "np"])
def test_visuals_take_their_tokens(processor, prompt, visuals, counts, return_tensors):
    inputs = processor(text=prompt, **visuals, return_tensors=return_tensors)
    assert token_counts(processor, inputs) == [(IMAGE_TOKENS * counts[0], FRAME_TOKENS * counts[1])]
    ids = {None: list, "pt": torch.Tensor, "np": np.ndarray}[return_tensors]
    names = [name for name in inputs if name.endswith(("input_ids", "attention_mask", "_indices"))]
    assert all(isinstance(inputs[name], ids) for name in names)


def test_visuals_stand_in_the_order_of_their_placeholders(processor):
    prompt = "<video> a <image> b <video> c <image>"
    ids = processor(text=prompt, images=[CAT, DOG], videos=[LONG, SHORT])["input_ids"][0]
    visual = [run for run in runs(ids) if run[0] in (processor.image_token_id, processor.video_token_id)]
    image_run = (processor.image_token_id, IMAGE_TOKENS)
    assert visual == [(processor.video_token_id, 10), image_run, (processor.video_token_id, 6), image_run]


@pytest.mark.parametrize("nested", [False, True])
def test_batches_mix_images_videos_of_any_length_and_text(processor, nested):
    prompts = ["hello", "<image><image> look", "<video>", "bye", "<image><video>"]
    images, videos = [[], [CAT, DOG], [], [], [CAT]], [[], [], [SHORT], [], [LONG]]
    if not nested:
        images, videos = [CAT, DOG, CAT], [SHORT, LONG]
    inputs = processor(text=prompts, images=images, videos=videos, padding=True, return_tensors="pt")
    assert token_counts(processor, inputs) == [(0, 0), (34, 0), (0, 6), (0, 0), (17, 10)]
    assert inputs["image_indices"].tolist() == [0, 1, 0]
    assert "video_indices" not in inputs  # the model's default says it
    assert inputs["video_num_frames"].tolist() == [3, 5]
    assert inputs["pixel_values"].shape == (2, 3, 56, 56)
    assert inputs["pixel_values_videos"].shape == (8, 3, 56, 56)
    assert len(inputs["qformer_input_ids"]) == 3
    assert len(inputs["qformer_input_ids_videos"]) == 2


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_sample_does_not_depend_on_its_batch(processor, padding_side):
    chats = [
        [user(image(), "What is it?"), assistant("A cat."), user(image(DOG), "And this?")],
        [user(video(LONG), "Who runs?")],
        [user("Hello.")],
        [user(video(SHORT), video(LONG), "Which is longer?")],
    ]
    batch = from_messages(processor, chats, padding=True, padding_side=padding_side)
    rows = {"image": 0, "video": 0}
    for index, chat in enumerate(chats):
        alone = from_messages(processor, chat)
        mask = batch["attention_mask"][index].bool()
        assert torch.equal(batch["input_ids"][index][mask], alone["input_ids"][0])
        for kind in rows:
            expected = instructions(processor, alone, kind)
            assert instructions(processor, batch, kind)[rows[kind] :][: len(expected)] == expected
            rows[kind] += len(expected)


@pytest.mark.parametrize("empty", [[], [[], []], ()])
def test_empty_lists_of_visuals_are_none(processor, empty):
    prompts = ["hello", "bye"]
    expected = processor(text=prompts, padding=True, return_tensors="pt")
    assert set(expected) == {"input_ids", "attention_mask"}
    for name in ("images", "videos"):
        assert_equal_inputs(processor(text=prompts, **{name: empty}, padding=True, return_tensors="pt"), expected)


def test_videos_that_are_lists_of_frames_are_no_samples(processor):
    videos = [[Image.fromarray(frame) for frame in visual] for visual in (SHORT, LONG)]
    inputs = processor(text=["<video><video>", "what"], videos=videos, padding=True, return_tensors="pt")
    assert token_counts(processor, inputs) == [(0, 16), (0, 0)]


# What is given several times is encoded once


@pytest.mark.parametrize("kind", ["pil", "array", "path", "Path"])
def test_the_same_image_is_encoded_once(processor, picture_file, tmp_path, kind):
    visual = {"pil": CAT, "array": np.array(CAT), "path": picture_file, "Path": tmp_path / "copy.png"}[kind]
    CAT.save(tmp_path / "copy.png")
    chat = [user(image(visual), "a"), assistant("b"), user(image(DOG), image(visual), "c")]
    inputs = from_messages(processor, chat)
    assert inputs["image_indices"].tolist() == [0, 1, 0]
    assert len(inputs["pixel_values"]) == 2
    assert len(inputs["qformer_input_ids"]) == 3
    assert_equal_inputs(from_prompt(processor, chat), inputs)


@pytest.mark.parametrize("kind", ["array", "tensor", "frames", "path", "bytes"])
def test_the_same_video_is_encoded_once(processor, clip, kind):
    with open(clip, "rb") as file:
        content = file.read()
    visual = {
        "array": LONG,
        "tensor": torch.from_numpy(LONG),
        "frames": [Image.fromarray(frame) for frame in LONG],
        "path": clip,
        "bytes": content,
    }[kind]
    chat = [user(video(visual), "a"), assistant("b"), user(video(SHORT), video(visual), "c")]
    inputs = from_messages(processor, chat)
    assert inputs["video_indices"].tolist() == [0, 1, 0]
    assert inputs["video_num_frames"].tolist() == [3 if kind in ("path", "bytes") else 5, 3]
    assert len(inputs["pixel_values_videos"]) == inputs["video_num_frames"].sum()
    assert_equal_inputs(from_prompt(processor, chat), inputs)


def test_equal_visuals_that_are_not_the_same_stay_apart(processor):
    inputs = processor(text="<image><image><video><video>", images=[CAT, CAT.copy()], videos=[LONG, LONG.copy()])
    assert [len(inputs[name]) for name in ("pixel_values", "video_num_frames")] == [2, 2]
    assert not {"image_indices", "video_indices"} & set(inputs)  # the model's defaults say it


def test_metadata_of_videos_that_are_given_twice(processor):
    metadata = [{"fps": 2.0}, {"fps": 1.0}, {"fps": 2.0}]
    inputs = processor(
        text="<video><video><video>", videos=[LONG, SHORT, LONG], video_metadata=metadata, return_tensors="pt"
    )
    assert inputs["video_num_frames"].tolist() == [3, 3]  # every second one of five, and all of three
    assert token_counts(processor, inputs) == [(0, 18)]


# Encoded videos


def test_encoded_videos_take_the_place_of_videos(processor):
    first, second = torch.rand(4, 17, 24), torch.rand(2, 17, 24)
    prompt = "<video> a <video> b <video>"
    inputs = processor(text=prompt, video_features=[first, second, first], return_tensors="pt")
    assert torch.equal(inputs["video_features"], torch.cat([first, second]))
    assert inputs["video_num_frames"].tolist() == [4, 2]
    assert inputs["video_indices"].tolist() == [0, 1, 0]
    assert token_counts(processor, inputs) == [(0, FRAME_TOKENS * 10)]
    assert "pixel_values_videos" not in inputs


def test_encoded_videos_of_a_batch_are_flat(processor):
    features = [torch.rand(2, 17, 24), torch.rand(3, 17, 24)]
    inputs = processor(text=["<video><video>", "what"], video_features=features, padding=True, return_tensors="pt")
    assert token_counts(processor, inputs) == [(0, 10), (0, 0)]


def test_encoded_videos_in_messages(processor):
    first, second = torch.rand(4, 17, 24), torch.rand(2, 17, 24)
    chats = [
        [user(video(first, "features"), "Who is it?"), assistant("A man."), user("Where?")],
        [user(image(), "What is it?")],
        [user(video(second, "features"), "When?")],
    ]
    inputs = from_messages(processor, chats, padding=True)
    assert torch.equal(inputs["video_features"], torch.cat([first, second]))
    assert instructions(processor, inputs, "video") == ["where?", "when?"]
    assert token_counts(processor, inputs) == [(0, 8), (17, 0), (0, 4)]


# Prompts and their tokens


def test_vicuna_prompt_and_its_tokens(processor):
    messages = [user(image(), "what"), assistant("a cat"), user("why"), assistant("so")]
    prompt = f"{SYSTEM} USER: <image>\nwhat ASSISTANT: a cat</s>USER: why ASSISTANT: so</s>"
    assert processor.apply_chat_template(messages) == prompt
    tokens = processor.tokenizer.convert_ids_to_tokens(from_messages(processor, messages)["input_ids"][0])
    after_image = len(tokens) - tokens[::-1].index("<image>")
    assert tokens[after_image : after_image + 2] == ["▁", "<0x0A>"]  # like the start of a string
    assert tokens.count("</s>") == 2
    assert tokens[-1] == "</s>"


def test_text_after_a_placeholder_starts_like_a_string(processor):
    ids = processor(text="<image>what<video>why", images=CAT, videos=SHORT)["input_ids"][0]
    visual = (processor.image_token_id, processor.video_token_id)
    words = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("what", "why")]
    assert [token for token in ids if token not in visual][1:] == words[0] + words[1]
    assert all(processor.tokenizer.convert_ids_to_tokens(word)[0].startswith("▁") for word in words)


def test_truncation_that_cuts_words_only(processor):
    inputs = processor(text="<image> " + "word " * 50, images=CAT, truncation=True, max_length=30, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 30)


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_bos_stands_once_at_the_front(processor, template):
    processor = with_template(processor, template)
    bos, bos_id = processor.tokenizer.bos_token, processor.tokenizer.bos_token_id
    messages = [user(image(), "what"), assistant("a cat")]
    prompt = processor.apply_chat_template(messages)
    expected = from_messages(processor, messages)["input_ids"]
    assert expected[0].tolist().count(bos_id) == 1
    assert expected[0, 0] == bos_id
    for given in (prompt, bos + prompt):
        for kwargs in ({}, {"text_kwargs": {"padding": True}}):
            assert torch.equal(processor(text=given, images=CAT, return_tensors="pt", **kwargs)["input_ids"], expected)
    batch = processor(text=[bos + prompt] * 2, images=[CAT, DOG], return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected.repeat(2, 1))
    for kwargs in ({"add_special_tokens": False}, {"text_kwargs": {"add_special_tokens": False}}):
        assert processor(text=bos + prompt, images=CAT, **kwargs)["input_ids"] == expected.tolist()


def test_bos_that_the_template_writes(processor):
    processor = with_template(processor, wrap_chat_template("{{ bos_token }}" + CHAT_TEMPLATES["chatml"]))
    for inputs in (
        from_messages(processor, [user(image(), "what")]),
        from_prompt(processor, [user(image(), "what")]),
    ):
        assert inputs["input_ids"][0].tolist().count(processor.tokenizer.bos_token_id) == 1


@pytest.mark.skipif(not MASKS, reason="transformers places the masks wrongly before 5.18")
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    ("template", "end"),
    [("vicuna_v1", "</s>"), ("plain", "\n"), ("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>")],
)
def test_assistant_masks_cover_the_words_and_the_end_of_turn(processor, template, end, padding_side):
    processor = with_template(processor, template)
    chats = [
        [user(video(), image(), "one"), assistant("a cat"), user(image(DOG), "two"), assistant("a dog")],
        [system("be brief"), user("three"), assistant("yes")],
        [user(image(), "four"), assistant("no")],
    ]
    inputs = from_messages(processor, chats, return_assistant_tokens_mask=True, padding=True, padding_side=padding_side)
    answers = [["acat", "adog"], ["yes"], ["no"]]
    for ids, mask, words in zip(inputs["input_ids"], inputs["assistant_masks"], answers, strict=True):
        covered = processor.tokenizer.decode(ids[mask.bool()])
        assert covered.replace(" ", "") == "".join(answer + end for answer in words)


@pytest.mark.skipif(MASKS, reason="transformers places the masks rightly since 5.18")
@pytest.mark.parametrize("messages", [[user(image(), "one"), assistant("a cat")], [user("one"), assistant("yes")]])
def test_assistant_masks_of_older_transformers_are_refused(processor, messages):
    with pytest.raises(ValueError, match=r"misplaces `return_assistant_tokens_mask`.*upgrade to 5.18"):
        from_messages(processor, messages, return_assistant_tokens_mask=True)


# What calls may look like


def data_url(visual: Image.Image) -> str:
    buffer = BytesIO()
    visual.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "part",
    [
        lambda path: image(path, "path"),
        lambda path: image(path, "image"),
        lambda path: image(path, "url"),
        lambda path: image(Image.open(path)),
        lambda path: image(np.array(CAT)),
        lambda path: image(data_url(CAT), "url"),
        lambda path: {"type": "image_url", "image_url": {"url": data_url(CAT)}},
        lambda path: {"type": "image_url", "image_url": data_url(CAT)},
        lambda path: {"type": "image", "image": CAT, "text": None, "url": None, "path": None},
    ],
    ids=["path", "image", "url", "pil", "array", "data url", "openai", "openai string", "with None entries"],
)
def test_forms_of_an_image_part(processor, picture_file, part):
    messages = [user(part(picture_file), "what"), assistant("x"), user("why")]
    given = copy.deepcopy(messages)
    assert_equal_inputs(
        from_messages(processor, messages), from_messages(processor, [user(image(), "what"), *given[1:]])
    )


def test_messages_are_not_changed(processor, picture_file, clip):
    features = torch.rand(2, 17, 24)
    messages = [
        system("be brief"),
        user(image(picture_file, "path"), {"type": "image_url", "image_url": {"url": data_url(CAT)}}, "one"),
        {"role": "assistant", "content": None},
        user(video(features, "features"), "two"),
    ]
    kwargs = {"processor_kwargs": {"text_kwargs": {"padding": True}, "instructions": ["a", "b", "c"]}}
    given, given_kwargs = copy.deepcopy(messages), copy.deepcopy(kwargs)
    for _ in range(2):
        from_messages(processor, messages, **kwargs)
        processor.apply_chat_template(messages)
    assert str(messages) == str(given)
    assert messages[3]["content"][0]["features"] is features
    assert kwargs == given_kwargs


def test_arguments_of_a_call_are_not_changed(processor):
    kwargs = {
        "text_kwargs": {"padding": True, "return_tensors": "pt"},
        "videos_kwargs": {"max_frames": 2},
    }
    given, prompts, videos = copy.deepcopy(kwargs), ["<video> one", "two"], [[SHORT], []]
    for _ in range(2):
        inputs = processor(text=prompts, videos=videos, **kwargs)
        assert inputs["video_num_frames"].tolist() == [2]
        assert isinstance(inputs["qformer_input_ids_videos"], torch.Tensor)
    assert kwargs == given
    assert prompts == ["<video> one", "two"]
    assert [len(sample) for sample in videos] == [1, 0]


@pytest.mark.parametrize("make", [list, tuple])
def test_lists_and_tuples(processor, make):
    chats = [[user(image(), "one")], [user("two"), assistant("yes")]]
    given = make(make({**message, "content": make(message["content"])} for message in chat) for chat in chats)
    assert_equal_inputs(from_messages(processor, given, padding=True), from_messages(processor, chats, padding=True))
    assert_equal_inputs(from_messages(processor, given[0]), from_messages(processor, chats[0]))
    kwargs = {"padding": True, "return_tensors": "pt"}
    assert_equal_inputs(
        processor(text=make(["<image> a", "b"]), images=make([make([CAT]), make([])]), **kwargs),
        processor(text=["<image> a", "b"], images=CAT, **kwargs),
    )


def test_content_may_be_a_string_or_missing(processor):
    expected = from_messages(processor, [user(image(), "one"), assistant(""), user("two")])
    for empty in ({"content": ""}, {"content": None}, {}, {"content": []}):
        messages = [user(image(), "one"), {"role": "assistant", **empty}, {"role": "user", "content": "two"}]
        assert_equal_inputs(from_messages(processor, messages), expected)


def test_a_batch_of_one_is_a_batch(processor):
    chat = [user(image(), "one")]
    assert isinstance(processor.apply_chat_template(chat), str)
    assert processor.apply_chat_template([chat]) == [processor.apply_chat_template(chat)]
    assert_equal_inputs(from_messages(processor, [chat]), from_messages(processor, chat))


def test_only_ids_without_return_dict(processor):
    chat = [user(image(), "one")]
    ids = processor.apply_chat_template(chat, tokenize=True, return_tensors="pt")
    assert torch.equal(ids, from_messages(processor, chat)["input_ids"])


@pytest.mark.parametrize(
    ("kwargs", "num_frames"),
    [({}, 3), ({"fps": 2}, 6), ({"num_frames": 4}, 4), ({"max_frames": 2}, 2), ({"do_sample_frames": False}, 12)],
    ids=str,
)
def test_sampling_arguments(processor, clip, kwargs, num_frames):
    chat = [user(video(clip, "path"), "one")]
    prompt = processor.apply_chat_template(chat)
    for inputs in (
        from_messages(processor, chat, **kwargs),
        from_messages(processor, chat, processor_kwargs=kwargs),
        from_messages(processor, chat, processor_kwargs={"videos_kwargs": kwargs}),
        processor(text=prompt, videos=clip, return_tensors="pt", **kwargs),
        processor(text=prompt, videos=clip, return_tensors="pt", videos_kwargs=kwargs),
    ):
        assert inputs["video_num_frames"].tolist() == [num_frames]
        assert token_counts(processor, inputs) == [(0, FRAME_TOKENS * num_frames)]


def test_video_as_the_any_to_any_pipeline_of_older_transformers_calls_it(processor, clip):
    expected = processor(text="<video> one", videos=clip, return_tensors="pt")
    assert_equal_inputs(processor(text="<video> one", images=None, video=clip, return_tensors="pt"), expected)


def test_arguments_given_in_both_ways_and_unknown_ones(processor, clip):
    chats = [[user(video(clip, "path"), "one")], [user("two")]]
    inputs = from_messages(
        processor, chats, max_frames=2, processor_kwargs={"padding": True, "instructions": "three"}, unknown=True
    )
    assert inputs["video_num_frames"].tolist() == [2]
    assert instructions(processor, inputs, "video") == ["three"]


def test_variables_of_the_template(processor):
    template = wrap_chat_template("{{ greeting }}" + CHAT_TEMPLATES["chatml"])
    chats = [[user(video(), "one")], [user("two")]]
    prompts = processor.apply_chat_template(chats, chat_template=template, greeting="Hello! ")
    assert all(prompt.startswith("Hello! <|im_start|>user") for prompt in prompts)
    inputs = from_messages(processor, chats, chat_template=template, greeting="Hello! ", padding=True, max_frames=2)
    assert processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True).startswith("Hello! ")
    assert inputs["video_num_frames"].tolist() == [2]


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.22"), reason="takes all of them in one place only")
def test_variables_of_the_template_need_no_warning(processor, monkeypatch):
    warnings = []
    monkeypatch.setattr(transformers.processing_utils.logger, "warning", warnings.append)
    template = wrap_chat_template("{{ greeting }}" + CHAT_TEMPLATES["chatml"])
    from_messages(processor, [user(video(), "one")], chat_template=template, greeting="Hello! ", max_frames=2)
    assert warnings == []


def test_return_tensors_in_any_place(processor):
    expected = processor(text="<image> one", images=CAT, return_tensors="pt")
    for kwargs in ({"text_kwargs": {"return_tensors": "pt"}}, {"common_kwargs": {"return_tensors": "pt"}}):
        inputs = processor(text="<image> one", images=CAT, **kwargs)
        assert isinstance(inputs["qformer_input_ids"], torch.Tensor)
        assert torch.equal(inputs["qformer_input_ids"], expected["qformer_input_ids"])


def test_modality_of_every_token(processor):
    inputs = processor(
        text=["<image> a <video>", "b"],
        images=CAT,
        videos=SHORT,
        padding=True,
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )
    expected = (inputs["input_ids"] == processor.image_token_id) + 2 * (inputs["input_ids"] == processor.video_token_id)
    assert torch.equal(inputs["mm_token_type_ids"], expected)


def test_number_of_tokens_is_known_beforehand(processor):
    counts = processor._get_num_multimodal_tokens(
        image_sizes=[(40, 60), (80, 60)], video_sizes=[(3, 24, 32), (5, 9, 9)]
    )
    inputs = processor(text=["<image><video>", "<image><video>"], images=[CAT, DOG], videos=[SHORT, LONG], padding=True)
    assert list(zip(counts.num_image_tokens, counts.num_video_tokens, strict=True)) == token_counts(processor, inputs)


def test_only_visuals(processor):
    inputs = processor(images=[CAT, DOG, CAT], videos=[SHORT, LONG], return_tensors="pt")
    assert inputs["image_indices"].tolist() == [0, 1, 0]
    assert inputs["video_num_frames"].tolist() == [3, 5]
    assert "input_ids" not in inputs


def test_input_names(processor):
    names = processor.model_input_names
    assert len(names) == len(set(names))
    pixels = processor(text="<image><image><video><video>", images=[CAT, CAT], videos=[SHORT, SHORT])
    features = processor(text="<video>", video_features=[torch.rand(2, 17, 24)])
    assert set(names) == set(pixels) | set(features)


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, wrap_chat_template(FOREIGN["default_system"])])
def test_saved_and_loaded(processor, clip, tmp_path, template):
    loaded = AutoProcessor.from_pretrained(UNTRAINED)  # parts of its own
    original = with_template(loaded, template, image_seq_length=9, frame_seq_length=5, default_instruction="look")
    original.video_processor.fps, original.video_processor.max_frames = 2.0, 5
    original.image_processor.do_pad = False
    original.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, LlamaVidProcessor)
    for name in (
        "chat_template",
        "user_turn_markers",
        "image_seq_length",
        "frame_seq_length",
        "default_instruction",
        "image_token_id",
        "video_token_id",
    ):
        assert getattr(again, name) == getattr(original, name), name
    assert (again.video_processor.fps, again.video_processor.max_frames) == (2.0, 5)
    assert again.image_processor.do_pad is False
    assert again.qformer_tokenizer.truncation_side == "left"
    chat = [user(image(), video(clip, "path"), "word " * 300 + "end [SEP]"), assistant("yes")]
    assert_equal_inputs(from_messages(again, chat), from_messages(original, chat))


def test_the_text_decoders_tokenizer_is_never_replaced_by_the_other(tmp_path):
    shutil.copytree(UNTRAINED, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "qformer_tokenizer")
    with pytest.raises(ValueError, match="cannot be loaded from the folder `qformer_tokenizer` of "):
        AutoProcessor.from_pretrained(tmp_path / "copy")


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_another_template_on_loading_has_its_own_markers(processor, template):
    loaded = AutoProcessor.from_pretrained(UNTRAINED, chat_template=template)
    assert loaded.user_turn_markers == with_template(processor, template).user_turn_markers
    chat = [user(image(), "one"), assistant("yes")]
    expected = DEFAULT if template == "plain" else "one"
    assert instructions(loaded, from_prompt(loaded, chat)) == [expected]


def test_lengths_given_on_loading():
    loaded = AutoProcessor.from_pretrained(UNTRAINED, frame_seq_length=5, image_seq_length=9)
    assert (loaded.frame_seq_length, loaded.image_seq_length) == (5, 9)


@pytest.mark.parametrize("name", ["pad_token", "unk_token"])
def test_special_tokens_given_on_loading_are_the_language_models(processor, name):
    loaded = AutoProcessor.from_pretrained(UNTRAINED, **{name: "</s>"})
    assert getattr(loaded.tokenizer, name) == "</s>"
    assert getattr(loaded.qformer_tokenizer, name) == getattr(processor.qformer_tokenizer, name)
    assert len(loaded.qformer_tokenizer) == len(processor.qformer_tokenizer)


def test_video_arguments_given_on_loading_are_the_video_processors(clip, tmp_path):
    AutoProcessor.from_pretrained(UNTRAINED, fps=2.0).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    for arguments, count in (({}, 6), ({"num_frames": 4}, 4)):
        assert from_messages(loaded, [user(video(clip), "one")], **arguments)["video_num_frames"].tolist() == [count]
    loaded.video_processor.fps = 1.0
    assert from_messages(loaded, [user(video(clip), "one")])["video_num_frames"].tolist() == [3]


def test_several_chat_templates_by_name(processor, tmp_path):
    several = with_template(processor, {"default": CHAT_TEMPLATES["chatml"], "short": CHAT_TEMPLATES["plain"]})
    several.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == several.chat_template
    chat = [user(image(), "one"), assistant("yes")]
    assert instructions(loaded, from_prompt(loaded, chat)) == ["one"]
    assert loaded.apply_chat_template(chat, chat_template="short") == "<image>yes\n"
    assert loaded.apply_chat_template(chat, chat_template="vicuna_v1").endswith("ASSISTANT: yes</s>")


def test_placeholders_are_added_to_a_tokenizer_that_lacks_them(processor):
    tokenizer = copy.deepcopy(processor.qformer_tokenizer)
    size = len(tokenizer)
    LlamaVidProcessor(
        processor.image_processor, tokenizer, processor.video_processor, processor.qformer_tokenizer, "chatml"
    )
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [size, size + 1]
    assert tokenizer.decode(tokenizer("a <image><video>")["input_ids"], skip_special_tokens=True) == "a"
