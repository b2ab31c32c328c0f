"""The model card: what it says, what it leaves out, and where its figures come from."""

import json
import re
import shlex
import shutil
from importlib.metadata import requires
from math import prod
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from original_checkpoints import write_bert_tokenizer, write_tokenizer
from packaging.requirements import Requirement
from safetensors import safe_open
from small_models import VISION
from small_parts import NEOX, NEW, WORDS, write
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, GPTNeoXConfig, GPTNeoXForCausalLM

from llama_vid import create_model, hub_repository
from llama_vid.hub_card import MARKER, is_written_by_hand, render_card
from llama_vid.hub_files import collect
from llama_vid.hub_provenance import (
    composition_step,
    conversion_step,
    provenance_of,
    read_provenance,
    write_provenance,
)
from llama_vid.modeling import LlamaVidForConditionalGeneration
from llama_vid.session import TINY_CHECKPOINT

TRAINING = {
    "step": "training",
    "stage": 2,
    "base_model": "someone/base",
    "modules": ["qformer", "language_model"],
    "lora": {"r": 64, "alpha": 16},
    "datasets": [{"name": "chats.json", "format": "llava", "weight": 0.5}],
    "steps": 1234,
    "batch_size": 128,
    "learning_rate": 2e-5,
    "loss": 0.9876,
    "versions": {"llama-vid": "0.1.0", "trl": "1.16.0"},
}
EVALUATION = {
    "name": "Questions about new films",
    "dataset": "someone/films",
    "metric": "exact_match",
    "value": 0.8125,
    "baseline": 0.25,
    "source": "https://example.org/report",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = shutil.copytree(TINY_CHECKPOINT, tmp_path / "checkpoint")
    for name in ("evaluation.json", "loss_curve.json", "loss_curve.png", "about.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


def card_of(folder: Path, **options) -> ModelCard:
    return ModelCard(render_card(collect(folder)[0], "someone/tiny", **options))


def test_what_is_unknown_is_left_out(folder):
    card = card_of(folder)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["llama-vid", "video", "vision-language-model"],
    }
    assert re.findall("^## (.*)", card.text, re.MULTILINE) == [
        *("What a frame costs", "What it is made of", "Use", "Intended use and limits", "Made with", "Citation"),
    ]
    assert "None" not in card.text
    assert "{%" not in card.text
    assert "\n\n\n" not in card.text


def test_costs_and_sizes_are_those_of_the_files(folder):
    text = card_of(folder).text
    processor = json.loads((folder / "processor_config.json").read_text())
    tokens, fps = processor["frame_seq_length"], processor["video_processor"]["fps"]
    assert f"| video frame | {tokens} | {round(tokens * 3600 * fps):,} |" in text
    assert f"| image | {processor['image_seq_length']} | - |" in text
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        sizes = {name: prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert f"| all | F32 | {sum(sizes.values()):,} |" in text
    vision = sum(size for name, size in sizes.items() if "vision_tower" in name)
    assert re.search(rf"\| visual encoder \| `\w+`, \d+ px \| {vision:,} \|", text)


@pytest.mark.parametrize(
    ("settings", "sees", "film", "frames"),
    [
        ({"fps": 2.0}, "2 frames a second", "an hour at 2 frames a second", 7200),
        ({"max_frames": 600}, "1 frame a second, but no more than 600 frames", "600 frames", 600),
        ({"num_frames": 16}, "16 frames of a video", "16 frames", 16),
        ({"do_sample_frames": False}, "every frame", "all frames", None),
    ],
)
def test_what_is_seen_is_what_the_processor_samples(folder, settings, sees, film, frames):
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["video_processor"] |= settings
    (folder / "processor_config.json").write_text(json.dumps(processor))
    text, tokens = card_of(folder).text, processor["frame_seq_length"]
    assert f"- It sees {sees} unless asked otherwise" in text
    assert f"| visual | tokens | {film} |" in text
    assert f"| video frame | {tokens} | {'-' if frames is None else format(tokens * frames, ',')} |" in text


def test_lora_goes_on_the_layers_that_a_language_model_has(tmp_path):
    """Among those of the whole model, which have the same names here and there."""
    write(CLIPVisionModel(CLIPVisionConfig(**VISION)), tmp_path / "clip")
    neox = GPTNeoXConfig(**NEOX, vocab_size=20, max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
    write(GPTNeoXForCausalLM(neox), write_tokenizer(tmp_path / "neox", WORDS))
    bert = write_bert_tokenizer(tmp_path / "bert")
    create_model(
        tmp_path / "model",
        vision_tower=tmp_path / "clip",
        language_model=tmp_path / "neox",
        qformer_tokenizer=bert,
        config_overrides=NEW,
    )
    [code] = re.findall(
        r"^```python\n([^`]*LoraConfig.*?)^```", card_of(tmp_path / "model").text, re.DOTALL | re.MULTILINE
    )
    names = {"model": LlamaVidForConditionalGeneration.from_pretrained(tmp_path / "model")}
    layers = names["model"].model.language_model.layers
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    exec(code, names)
    adapted = [name for name, _ in names["model"].named_parameters() if "lora_A" in name]
    assert len(adapted) == len(linear) > 0
    assert all(".language_model.layers." in name for name in adapted)


def test_what_the_code_needs_is_what_the_package_needs(folder):
    [command] = re.findall(r"^pip install (.*torchvision.*)", card_of(folder).text, re.MULTILINE)
    needed = {str(Requirement(text)) for text in requires("llama-vid")}
    assert {str(Requirement(text)) for text in shlex.split(command)} <= needed


def test_training_and_evaluation_are_those_of_their_files(folder):
    (folder / "loss_curve.json").write_text(json.dumps({"loss": [[10, 2.5], [1234, 0.98765]], "eval_loss": []}))
    (folder / "loss_curve.png").write_bytes(b"png")
    other = {**EVALUATION, "metric": "f1", "baseline": None, "samples": 500}
    (folder / "evaluation.json").write_text(json.dumps([EVALUATION, other]))
    card = card_of(folder, steps=[TRAINING], datasets=["someone/chats"], license="apache-2.0")
    assert (
        "| 2 | someone/base | qformer, language_model (LoRA, rank 64, on the language model) | chats.json (weight 0.5) "
        "| 1234 | 128 | 2e-05 | 0.9876 |" in card.text
    )
    assert "![Loss over 1234 steps](loss_curve.png)" in card.text
    assert "| task | data | samples | metric | value | baseline | source |\n" in card.text
    assert "|  | exact_match | **0.8125** | 0.25 | https://example.org/report |" in card.text
    assert "| 500 | f1 | **0.8125** |  | https" in card.text
    assert "llama-vid 0.1.0, trl 1.16.0." in card.text

    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("someone/base", "finetune")
    assert (data["license"], data["datasets"]) == ("apache-2.0", ["someone/chats"])
    [result, _] = card.data.eval_results
    assert data["metrics"] == ["exact_match", "f1"]
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("someone/films", "exact_match", 0.8125)
    assert result.source_url == EVALUATION["source"]


def test_columns_without_a_word_are_left_out(folder):
    card = card_of(folder, steps=[{**TRAINING, "base_model": None, "max_length": 2048}])
    header = "| stage | trained | data | tokens at most | steps | batch | learning rate | last logged loss |\n"
    assert header in card.text
    assert "the training below took samples of up to 2,048." in card.text


def test_what_rows_have_in_common_is_told_once(folder):
    (folder / "evaluation.json").write_text(json.dumps([EVALUATION, {**EVALUATION, "name": "About clips", "value": 1}]))
    text = card_of(folder, steps=[TRAINING, TRAINING, {**TRAINING, "modules": ["qformer"]}]).text
    assert "| task | data | value | baseline |\n" in text
    assert "| About clips | someone/films | **1** | 0.25 |\n" in text
    assert "All are exact_match, from https://example.org/report. The figures are" in text
    trained = re.findall(r"^\| 2 \| someone/base \| (.*?) \|", text, re.MULTILINE)
    assert [cell.partition(" (")[0] for cell in trained] == ["qformer, language_model", "as above", "qformer"]


def test_what_its_makers_say(folder):
    about = {
        "summary": "It knows coloured shapes.",
        "question": 'What\'s the "red" thing?',
        "use": "Trying out.",
        "evaluation": "Measured twice.",
    }
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "evaluation.json").write_text(json.dumps([EVALUATION]))
    text = card_of(folder).text
    assert "\n\nIt knows coloured shapes.\n\n" in text
    assert "Measured twice. The figures are" in text
    assert "\n\nTrying out.\n\n" in text
    assert "Describing images" not in text
    [asked] = re.findall(r'"type": "text", "text": (.*)}', text)
    assert json.loads(asked) == about["question"]
    [command] = re.findall("^llama-vid ask .*", text, re.MULTILINE)
    assert shlex.split(command)[3] == about["question"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["text"], "must be an object with any of summary, question, evaluation, use"),
        ({"title": "text"}, "must be an object with any of"),
        ({"summary": 1}, "each is a text"),
    ],
)
def test_bad_words_of_its_makers(folder, content, message):
    (folder / "about.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        card_of(folder)


@pytest.mark.parametrize(
    "source", ["YanweiLi/llama-vid-7b-full-224-long-video", "originals/llama-vid-7b-full-224-long-video"]
)
def test_converted_releases_keep_their_licence(folder, source):
    steps = [conversion_step(source), {**TRAINING, "base_model": None}]
    card = card_of(folder, steps=steps)
    assert card.data.license == "cc-by-nc-4.0"
    assert "converted from [YanweiLi/llama-vid-7b-full-224-long-video](https://huggingface.co/YanweiLi/" in card.text
    assert card.data.base_model == "YanweiLi/llama-vid-7b-full-224-long-video"
    with pytest.raises(ValueError, match=r"`license='mit'`, but the weights come from a checkpoint under cc-by-nc-4.0"):
        card_of(folder, steps=steps, license="mit")


def test_what_is_in_the_hubs_cache_is_known_by_its_name(tmp_path):
    folder = tmp_path / "models--YanweiLi--llama-vid-7b-full-224" / "snapshots" / "0123abcd"
    (folder / "vision").mkdir(parents=True)
    step = conversion_step(folder, base_model=tmp_path / "models--lmsys--vicuna-7b-v1.5" / "snapshots" / "4567cdef")
    assert (step["source"], step["license"]) == ("YanweiLi/llama-vid-7b-full-224", "cc-by-nc-4.0")
    assert step["base_model"] == "lmsys/vicuna-7b-v1.5"
    assert composition_step(vision_tower=folder / "vision")["parts"] == {"vision_tower": step["source"]}


def test_a_conversion_of_ones_own_brings_no_licence(folder, tmp_path):
    (tmp_path / "llama-vid-7b-full-224").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "llama-vid-7b-full-224")
    assert conversion_step(tmp_path / "link")["license"] == "cc-by-nc-4.0"
    step = conversion_step(tmp_path / "my-own-run", base_model="lmsys/vicuna-7b-v1.5")
    assert (step["source"], step["base_model"]) == ("my-own-run", "lmsys/vicuna-7b-v1.5")
    card = card_of(folder, steps=[step])
    assert card.data.license is None
    assert "converted" not in card.text


def test_a_new_model_says_that_it_is_untrained(folder, tmp_path):
    (tmp_path / "vicuna").mkdir()
    step = composition_step(vision_tower="openai/clip", language_model=tmp_path / "vicuna", qformer=None)
    assert step["parts"] == {"vision_tower": "openai/clip", "language_model": "vicuna"}
    card = card_of(folder, steps=[step])
    assert "**This model is untrained**" in card.text
    assert card.data.base_model == "openai/clip"
    assert "It was assembled from `openai/clip` (visual encoder), `vicuna` (language model); what" in card.text
    assert "untrained" not in card_of(folder, steps=[step, TRAINING]).text


def test_an_adapter(folder):
    files = collect(folder)[0]
    files = {name: path for name, path in files.items() if name not in ("config.json", "model.safetensors")}
    (folder / "adapter_config.json").write_text('{"peft_version": "0.21.2", "revision": "v1"}')
    files["adapter_config.json"] = folder / "adapter_config.json"
    card = ModelCard(render_card(files, "someone/adapter", base_model="someone/tiny"))
    data = card.data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "someone/tiny", "adapter")
    assert 'PeftModel.from_pretrained(base, "someone/adapter")' in card.text
    assert 'from_pretrained("someone/tiny", revision="v1", trust_remote_code=True, dtype="auto")' in card.text
    assert "What it is made of" not in card.text
    assert "peft 0.21.2." in card.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"accuracy": 0.9}, "must be a list of objects with dataset, metric, name, source, value"),
        (EVALUATION, "must be a list of objects"),
        ([{**EVALUATION, "extra": 1}], "must be a list of objects"),
        ([{**EVALUATION, "source": 7}], "name, dataset, metric and source are texts"),
        ([{**EVALUATION, "value": "0.9"}], "value, baseline and samples are numbers"),
    ],
)
def test_bad_evaluations(folder, content, message):
    (folder / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        card_of(folder)


def test_whose_a_card_is():
    for text in (f"# Title\n{MARKER}\n", "---\ntags:\n- trl\n---\n", "[More Information Needed]"):
        assert not is_written_by_hand(text)
    assert is_written_by_hand("# Title")


def test_a_draft_is_not_lost(folder):
    """Somebody may have written in it, although a trainer began it."""
    draft = "---\ntags:\n- trl\n---\nMy own words."
    (folder / "README.md").write_text(draft)
    for _ in range(2):
        with hub_repository.repository(folder, "someone/tiny") as found:
            assert MARKER in found.files["README.md"].read_text()
            assert "README.md.orig" not in found.files
        assert (folder / "README.md.orig").read_text() == draft


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "a JSON object, but is no JSON"),
        ("config.json", b'\xef\xbb\xbf{"model_type": "llama_vid"}', "a JSON object, but is no JSON .*BOM"),
        ("config.json", b"[]", "a JSON object: mend it"),
        ("adapter_config.json", b"", "a JSON object with base_model_name_or_path, but is no JSON"),
        ("adapter_config.json", b"{}", "a JSON object with base_model_name_or_path: mend it"),
        ("adapter_config.json", b"[]", "a JSON object with base_model_name_or_path: mend it"),
        ("processor_config.json", b"{}", "a JSON object with frame_seq_length, image_seq_length, video_processor"),
        ("loss_curve.json", b"[]", "a JSON object: mend it"),
        ("provenance.json", b'[{"step": "conversion", "license": "mit"}]', "a list of steps, each with .*`source`"),
        ("provenance.json", b'[{"step": "composition"}]', "a list of steps, each with .*`parts`"),
        ("README.md", b"---\nlicense: [\n---\nMine.", "UTF-8 with metadata in YAML"),
        ("README.md", b"---\n- mit\n---\nMine.", "UTF-8 with metadata in YAML"),
        ("README.md", b"\xff\xfe", "UTF-8 with metadata in YAML"),
    ],
)
def test_a_damaged_file_is_named(folder, name, content, message):
    (folder / "loss_curve.png").write_bytes(b"png")
    (folder / name).write_bytes(content)
    with (
        pytest.raises(ValueError, match=rf"{re.escape(name)}` must be {message}"),
        hub_repository.repository(folder, "someone/tiny"),
    ):
        pass


def test_a_draft_that_is_no_text_is_not_lost(folder):
    draft = b"---\ntags:\n- trl\n---\n\xff"
    (folder / "README.md").write_bytes(draft)
    with hub_repository.repository(folder, "someone/tiny") as found:
        assert MARKER in found.files["README.md"].read_text()
    assert (folder / "README.md.orig").read_bytes() == draft


def test_a_training_of_which_nothing_is_known(folder):
    assert "None" not in card_of(folder, steps=[{"step": "training", "modules": None, "datasets": None}]).text


def test_a_card_of_ones_own_says_all_itself(folder):
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nMy own words.")
    for options in ({"license": "mit"}, {"datasets": ["a/b"]}):
        with (
            pytest.raises(ValueError, match=r"README\.md was written by hand: say them there"),
            hub_repository.repository(folder, "someone/tiny", **options),
        ):
            pass
    write_provenance(folder, [conversion_step("YanweiLi/llama-vid-7b-full-224"), {**TRAINING, "base_model": None}])
    with (
        pytest.raises(ValueError, match=r"`license='apache-2\.0'`, but the weights come from .* under cc-by-nc"),
        hub_repository.repository(folder, "someone/tiny"),
    ):
        pass


def test_provenance_is_not_lost_where_the_hub_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LocalEntryNotFoundError):
        provenance_of("someone/base")


def test_publishing_asks_for_what_the_training_could_not(folder, monkeypatch):
    before = [conversion_step("YanweiLi/llama-vid-7b-full-224-long-video")]
    asked = []
    monkeypatch.setattr(hub_repository, "provenance_of", lambda *model: asked.append(model) or before)
    write_provenance(folder, [TRAINING])
    with hub_repository.repository(folder, "someone/tiny") as found:
        assert ModelCard.load(found.files["README.md"]).data.license is None
    assert asked == []  # now it may be this very model that is there
    write_provenance(folder, [{**TRAINING, "unasked_revision": "v1"}])
    with hub_repository.repository(folder, "someone/tiny") as found:
        assert ModelCard.load(found.files["README.md"]).data.license == "cc-by-nc-4.0"


def test_provenance_is_kept_beside_the_weights(tmp_path):
    assert read_provenance(tmp_path) == []
    write_provenance(tmp_path, [TRAINING])
    assert read_provenance(tmp_path) == [TRAINING]
    (tmp_path / "provenance.json").write_text('{"stage": 2}')
    with pytest.raises(ValueError, match="must be a list of steps"):
        read_provenance(tmp_path)
