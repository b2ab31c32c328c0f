"""What of a folder goes to the Hub, and what is found in it that must not."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import llama_vid.modeling
from llama_vid.composition import new_folder
from llama_vid.hub_files import (
    TEXTS,
    check_contents,
    code_files,
    collect,
    find_foreign_code,
    find_local_paths,
    find_private,
)
from llama_vid.session import TINY_CHECKPOINT
from llama_vid.whole_files import whole_file

ROOT = Path(__file__).resolve().parents[1]

# Joined here, so that no file of the repository looks as if it held one.
TOKEN = "hf_" + "x" * 34
HOME = "/".join(["", "home", "jane", "models"])
EMAIL = "jane" + "@example.com"


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(TINY_CHECKPOINT, tmp_path / "checkpoint")


def test_a_checkpoint_goes_up_whole(folder):
    shutil.copy(code_files()["modeling_llama_vid.py"], folder)
    (folder / "loss_curve.png").write_bytes(b"png")
    (folder / "LICENSE").write_text("Do as you please.")
    files, left_out = collect(folder)
    assert {folder / name for name in files} == {path for path in folder.rglob("*") if path.is_file()}
    assert left_out == []
    check_contents(files)


def test_what_a_training_leaves_is_no_part_of_a_model(folder):
    left = ["optimizer.pt", "pytorch_model_fsdp.bin", "rng_state_0.pth", "scheduler.pt", "trainer_state.json"]
    left.append("training_args.bin")
    for name in left:
        (folder / name).write_bytes(b"state")
    for name in ("checkpoint-20", "runs"):
        (folder / name).mkdir()
        (folder / name / "events.bin").write_bytes(b"state")
    files, left_out = collect(folder)
    assert set(files) == set(collect(Path(TINY_CHECKPOINT))[0])
    assert left_out == sorted([*left, "checkpoint-20", "runs"])


def test_what_a_killed_process_leaves_is_no_part_of_a_model(folder):
    before = set(collect(folder)[0])
    with whole_file(folder / "provenance.json") as file, new_folder(folder / "output") as partial:
        file.write_text("[")
        (partial / "model.safetensors").write_bytes(b"cut off")
        files, left_out = collect(folder)
    assert set(files) == before
    assert left_out == sorted([file.name, partial.name])


def test_everything_that_is_refused_is_named_at_once(folder, tmp_path):
    (tmp_path / "outside.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / "handler.py").write_text("print()")
    (folder / "modeling_llama_vid.py").write_text("changed = True")
    (folder / "notes.docx").write_bytes(b"notes")
    (folder / ".env").write_text("A=1")
    (folder / "linked.json").symlink_to(tmp_path / "outside.json")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="holds what does not go to the Hub") as raised:
        collect(folder)
    message = str(raised.value)
    for name, reason in {
        ".env": "hidden",
        "handler.py": "code that is not this package's",
        "linked": "a link to a folder, or out of this one",
        "linked.json": "a link to a folder, or out of this one",
        "modeling_llama_vid.py": "differs from this package's",
        "notes.docx": "neither safetensors, JSON, text, template nor image",
        "pipe": "no regular file",
        "pytorch_model.bin": "neither safetensors",
    }.items():
        assert f"{name} ({reason}" in message


def test_a_link_inside_the_folder_is_followed(folder):
    (folder / "copy.json").symlink_to("config.json")
    assert "copy.json" in collect(folder)[0]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"login with {TOKEN}", "a Hugging Face token"),
        ("key: sk-" + "a1" * 20, "an API key"),
        ("AKIA" + "A" * 16, "an API key"),
        ("ghp_" + "a" * 36, "a GitHub token"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("https://jane:letmein" + "@example.org/data", "a password in a URL"),
        ("hf_oauth_" + "eyJhbGciOi" * 6, "a Hugging Face token"),
        ('{"wandb_api_key": "' + "0a" * 20 + '"}', "a password or key"),
        ("wandb_api_key: " + "0a" * 20, "a password or key"),
        ("password: " + "hunter2" * 2 + "  # mine", "a password or key"),
        ("Set AWS_SECRET_ACCESS_KEY=" + "wJalr7/b+" * 4 + " before.", "a password or key"),
        ("aws_secret_access_key = " + "wJalr7/b+" * 4, "a password or key"),
        ('{"hub_token": "' + "abcd1234" * 2 + '"}', "a password or key"),
        (f"ask {EMAIL}", "an e-mail address"),
        (f"trained in {HOME}", "a home directory"),
        ("C:\\Users\\" + "jane\\models", "a home directory"),
    ],
)
def test_secrets_and_personal_data(folder, text, kind):
    (folder / "notes.md").write_text(f"First line.\n{text}\n")
    with pytest.raises(ValueError, match=f"notes.md, line 2: {kind}") as raised:
        check_contents(collect(folder)[0])
    assert text not in str(raised.value)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens: 128",
        "pad_token: </s>",
        '{"eos_token": "<|endoftext|>", "image_token": "image0001"}',
        '{"hub_token": null, "push_to_hub_token": "<PUSH_TO_HUB_TOKEN>"}',
        "password: yours",
        "The secret: AES256-encrypted storage, and the password: yours.",
        "Secret:\n\nGPT4-like-answers",
        'api_key=os.environ["API_KEY_2"], hub_token=hub_token,max_tokens=128',
        "hub_token=arguments2.hub_token",
        'WANDB_API_KEY="$WANDB_API_KEY"',
        'api_key="<your-api-key>" {{ "password={{password}}" }}',
        "password={{ password }}",
        "{%- set secret = messages[0]['content2'] %}",
    ],
)
def test_words_that_only_sound_secret(text):
    assert find_private("notes.md", text) == []


def test_unbroken_text_takes_no_time():
    """Not the square of its length, which would be hours."""
    for line in ("a" * 1_000_000, "secret=" * 30_000):
        assert find_private("notes.md", f"{line}\n{EMAIL}") == ["notes.md, line 2: an e-mail address"]


def test_nothing_of_ours_sounds_secret():
    texts = [path for path in Path(TINY_CHECKPOINT).rglob("*") if path.suffix in TEXTS]
    texts += [ROOT / "README.md", *(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "recipes").rglob("*.md")]
    assert len(texts) > 20
    assert [found for path in texts for found in find_private(path.name, path.read_text(encoding="utf-8"))] == []


def test_the_token_in_use_is_found_whatever_it_looks_like(folder):
    (folder / "notes.txt").write_text("open sesame, please")
    with pytest.raises(ValueError, match="line 1: the token in use"):
        check_contents(collect(folder)[0], token="open sesame")


def test_metadata_of_weights_are_text_too(folder):
    save_file({"a": torch.zeros(1)}, folder / "more.safetensors", metadata={"by": EMAIL})
    with pytest.raises(ValueError, match=r"more.safetensors, line 1: an e-mail address"):
        check_contents(collect(folder)[0])
    save_file({"a": torch.zeros(1)}, folder / "more.safetensors", metadata={"source": "/data/models/vicuna"})
    with pytest.raises(ValueError, match=r"more.safetensors: `source` is the local path '/data/models/vicuna'"):
        check_contents(collect(folder)[0])


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"model\.safetensors is no readable safetensors file \("):
        check_contents(collect(folder)[0])


def test_vocabularies_are_fragments_and_no_addresses():
    assert find_private("tokenizer.json", f'"{EMAIL}": 5, "{HOME}": 6') == []
    assert find_private("tokenizer.json", TOKEN) == ["tokenizer.json, line 1: a Hugging Face token"]


@pytest.mark.parametrize("value", ["/data/models/vicuna", "~/vicuna", "./vicuna", "..\\vicuna", "D:\\vicuna", "file:v"])
def test_configurations_name_no_place_on_this_machine(folder, value):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["_name_or_path"] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: `text_config._name_or_path` is the local path"):
        check_contents(collect(folder)[0])


def test_short_paths_and_names_in_objects(folder):
    found = find_local_paths("config.json", {"root": "/tmp", "said": "/no-such-thing", "/films/a.mp4": 1})
    assert found == ["config.json: `root` is the local path '/tmp'", "config.json: `` is the local path '/films/a.mp4'"]


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"auto_map": {"AutoConfig": "evil/repo--x.Y"}}, "auto_map.AutoConfig"),
        ({"auto_map": {"AutoTokenizer": [None, "evil/repo--x.Y"]}}, "auto_map.AutoTokenizer"),
        (
            {"image_processor": {"auto_map": {"AutoImageProcessor": "evil/repo--x.Y"}}},
            "image_processor.auto_map.AutoImageProcessor",
        ),
        ({"parts": [{"inner": {"auto_map": "evil/repo--x.Y"}}]}, "parts.inner.auto_map"),
        ({"custom_pipelines": {"mine": {"impl": "evil/repo--x.Y"}}}, "custom_pipelines.mine.impl"),
    ],
)
def test_code_of_elsewhere_is_found_wherever_it_is_named(content, key):
    found = find_foreign_code("config.json", content)
    assert found == [f"config.json: `{key}` names the code 'evil/repo--x.Y' of elsewhere"]
    assert find_foreign_code("config.json", json.loads(json.dumps(content).replace("evil/repo--", ""))) == []


def test_a_parts_code_of_elsewhere_does_not_go_up(folder):
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["video_processor"]["auto_map"] = {"AutoVideoProcessor": "evil/repo--x.Y"}
    path.write_text(json.dumps(processor))
    with pytest.raises(ValueError, match=r"`video_processor\.auto_map\.AutoVideoProcessor` names the code"):
        check_contents(collect(folder)[0])


def test_recipes_name_no_place_on_this_machine(folder):
    (folder / "recipe.yaml").write_text("stage: 2\ntrain_datasets:\n  - path: data/chats.json\n")
    check_contents(collect(folder)[0])
    (folder / "recipe.yaml").write_text("train_datasets:\n  - path: chats.json\n    root: /mnt/films/of-clients\n")
    with pytest.raises(ValueError, match=r"recipe.yaml: `train_datasets.root` is the local path '/mnt/films/"):
        check_contents(collect(folder)[0])


def test_names_in_a_recipe_may_be_numbers(folder):
    (folder / "recipe.yaml").write_text("1: one\n")
    check_contents(collect(folder)[0])


def test_a_folder_that_could_be_a_hub_id(folder, tmp_path, monkeypatch):
    (tmp_path / "runs" / "stage1").mkdir(parents=True)
    (folder / "more.json").write_text('{"base_model_name_or_path": "runs/stage1"}')
    check_contents(collect(folder)[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"more.json: `base_model_name_or_path` is the local path 'runs/stage1'"):
        check_contents(collect(folder)[0])


def test_texts_that_are_none(folder):
    (folder / "notes.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "more.json").write_text("{")
    (folder / "recipe.yaml").write_text("[")
    match = r"(?s)more.json is no JSON .*notes.txt is no UTF-8 text.*recipe.yaml is no YAML"
    with pytest.raises(ValueError, match=match):
        check_contents(collect(folder)[0])


def test_own_code_is_all_of_it():
    folder = Path(llama_vid.modeling.__file__).parent
    assert set(code_files()) == {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    check_contents(code_files())
    assert all(find_private(name, path.read_text()) == [] for name, path in code_files().items())
