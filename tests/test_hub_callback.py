"""`push_to_hub` in recipes leaves on the Hub what `publish` would, of every stage and while it trains."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_videos import pictures

from llama_vid.hub_callback import HubCallback, _forget_best_checkpoint
from llama_vid.hub_files import code_files
from llama_vid.session import TINY_CHECKPOINT

pytest_plugins = ["local_hub"]

BASE = "someone/base"
TINY_RECIPES = Path(__file__).parents[1] / "recipes" / "tiny"

# Publishes a base, trains recipes, one after another in one process, and publishes each result by hand beside. Where a
# result is the same file by file as another's, or of its kind, it is not asked a question again.
TRAIN = """
import json, sys
import llama_vid.hub
from llama_vid import publish
from llama_vid.training.sft import train
base, folder, jobs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ask, unasked = llama_vid.hub.ask_as_a_stranger, lambda *_: ""
llama_vid.hub.ask_as_a_stranger = unasked
publish(folder, base)
for recipe, output, twin, is_asked in jobs:
    llama_vid.hub.ask_as_a_stranger = ask if is_asked else unasked
    train(["--config", recipe])
    llama_vid.hub.ask_as_a_stranger = unasked
    publish(output, twin)
"""

# A whole model and an adapter.
ASKED = ("stage-1", "stage-2-lora")

# Name and what differs from the tiny model's recipe of the stage.
RUNS = {
    "stage-1": {"stage": 1, "hub_strategy": "end"},
    "stage-1-trained": {"stage": 1, "save_only_trained": True},
    "stage-2": {"stage": 2, "hub_strategy": "checkpoint"},
    "stage-2-lora": {
        "stage": 2,
        "use_peft": True,
        "lora_r": 4,
        "hub_strategy": "all_checkpoints",
        "hub_token": "hf_" + 34 * "w",
    },
    "stage-3": {"stage": 3, "hub_strategy": "every_save", "save_total_limit": 1},
}


@pytest.fixture(scope="module")
def runs(hub, tmp_path_factory) -> Path:
    """A folder with the outputs of all runs, pushed and published."""
    work = tmp_path_factory.mktemp("runs")
    Image.fromarray(next(pictures(1))).save(work / "picture.png")
    turns = [{"from": "human", "value": "<image>\nWhich one?"}, {"from": "gpt", "value": "This one."}]
    (work / "chats.json").write_text(
        json.dumps([{"id": n, "image": "picture.png", "conversations": turns, "length": 16} for n in "ab"])
    )
    jobs = []
    for name, changes in RUNS.items():
        data = {"path": str(work / "chats.json"), "root": str(work)}
        recipe = TINY_RECIPES / f"stage{changes['stage']}.yaml"
        settings = {
            **yaml.safe_load(recipe.read_text(encoding="utf-8")),
            "model_name_or_path": BASE,
            "train_datasets": [{**data, "format": "llava_captions" if changes["stage"] == 1 else "llava"}],
            "output_dir": str(work / name),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "push_to_hub": True,
            "hub_model_id": f"someone/{name}",
            "hub_always_push": True,
            **changes,
        }
        (work / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        jobs.append([str(work / f"{name}.yaml"), settings["output_dir"], f"someone/{name}-twin", name in ASKED])
    folder = work / "base"
    folder.mkdir()
    for path in Path(TINY_CHECKPOINT).rglob("*"):
        if path.is_file() and path.name not in ("README.md", "provenance.json"):
            target = folder / path.relative_to(TINY_CHECKPOINT)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    (folder / "provenance.json").write_text(
        '[{"step": "conversion", "source": "YanweiLi/x", "license": "cc-by-nc-4.0"}]'
    )
    result = hub.run("-c", TRAIN, BASE, folder, json.dumps(jobs))
    assert result.returncode == 0, result.stderr[-5000:]
    return work


def root_files(hub, repo_id: str) -> dict[str, bytes]:
    """Without what a checkpoint left in a folder of its own, and without the name in the card."""
    files = hub.repos[repo_id].files()
    card = files["README.md"].replace(repo_id.encode(), b"NAME").replace(repo_id.rpartition("/")[2].encode(), b"NAME")
    files = {**files, "README.md": card}
    return {name: content for name, content in files.items() if "checkpoint" not in name.partition("/")[0]}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_what_publish_would(hub, runs, name):
    pushed, published = (root_files(hub, repo_id) for repo_id in (f"someone/{name}", f"someone/{name}-twin"))
    assert pushed.keys() == published.keys()
    assert [file for file in pushed if pushed[file] != published[file]] == []
    assert set(code_files()) < set(pushed)
    weights = {file for file in pushed if file.endswith(".safetensors")}
    assert weights == {"adapter_model.safetensors" if name.endswith("lora") else "model.safetensors"}
    assert {"loss_curve.json", "loss_curve.png", "processor_config.json", "provenance.json"} <= set(pushed)


@pytest.mark.parametrize("name", RUNS)
def test_the_card_says_what_was_trained(hub, runs, name):
    files = hub.repos[f"someone/{name}"].files()
    conversion, training = json.loads(files["provenance.json"])
    assert conversion["step"] == "conversion"
    assert (training["stage"], training["steps"], training["base_model"]) == (RUNS[name]["stage"], 2, BASE)
    assert training["batch_size"] == 2
    assert [data["name"] for data in training["datasets"]] == ["chats.json"]
    losses = json.loads(files["loss_curve.json"])["loss"]
    assert training["loss"] == pytest.approx(losses[-1][1], abs=1e-4)
    assert ("language_model" in training["modules"]) == (training["stage"] > 1)
    assert "vision_tower" not in training["modules"]

    card = files["README.md"].decode()
    assert f"| {training['stage']} | {BASE} | {', '.join(training['modules'])}" in card
    figures = rf"\| {training['learning_rate']:.4g} \| {training['loss']:.4g} \|"
    assert re.search(rf"\| chats.json \| \d+ \| 2 \| [\d.]+ \| 2 \| muon, adamw {figures}", card)
    assert "license: cc-by-nc-4.0" in card
    assert f"base_model: {BASE}\n" in card


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_are_pushed_as_the_strategy_says(hub, runs, name):
    repo = hub.repos[f"someone/{name}"]
    messages = [message for message, _ in repo.commits.values()][1:]
    kind = "adapter" if name.endswith("lora") else "model"
    during = (
        [] if RUNS[name].get("hub_strategy") == "end" else [f"Training in progress, step {step}" for step in (1, 2)]
    )
    assert messages == [*during, f"Upload {kind} with llama-vid"]

    folders = {path.partition("/")[0] for path in repo.files() if "checkpoint" in path.partition("/")[0]}
    expected = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    assert folders == expected.get(RUNS[name].get("hub_strategy"), set())
    for folder in folders:
        inside = {path.partition("/")[2] for path in repo.files() if path.startswith(f"{folder}/")}
        assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "processor_config.json"} <= inside
    for _, files in list(repo.commits.values())[1:]:
        assert {"README.md", "processor_config.json", "provenance.json", *code_files()} <= set(files)
        assert not any(path.endswith("training_args.bin") for path in files)
        assert not any(b"hf_" + 34 * b"w" in content for content in files.values())


def test_nothing_is_left_beside_the_outputs(runs):
    assert not list(runs.glob(".*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_peft": True, "model_name_or_path": TINY_CHECKPOINT}, "which nobody else has: publish the base first"),
        ({"hub_token": "hf_" + 34 * "r"}, "This token may not write to someone/early (403)"),
    ],
)
def test_what_cannot_be_pushed_ends_before_it_trains(hub, runs, tmp_path, changes, message):
    settings = yaml.safe_load((runs / "stage-2.yaml").read_text())
    settings |= {"output_dir": str(tmp_path / "run"), "hub_model_id": "someone/early", **changes}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    result = hub.llama_vid("train", "--config", tmp_path / "recipe.yaml")
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_copies_to_push_from(tmp_path):
    """What a run that was killed left behind goes, another run's stays, and so does the checkpoint."""
    callback = HubCallback.__new__(HubCallback)
    callback.output_dir, callback._job = tmp_path / "run", None
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-2" / "README.md").write_text("draft")
    for name in (".run-checkpoint-1.abcd.push", ".other-checkpoint-1.abcd.push"):
        (tmp_path / name).mkdir()
    with callback._copy(tmp_path / "run" / "checkpoint-2") as copy:
        assert (Path(copy) / "README.md").read_text() == "draft"
        assert {path.name for path in tmp_path.iterdir()} == {"run", ".other-checkpoint-1.abcd.push", Path(copy).name}
    assert (tmp_path / "run" / "checkpoint-2" / "README.md").exists()


def test_the_place_of_the_best_checkpoint_is_not_told(tmp_path):
    own, sent = tmp_path / "own.json", tmp_path / "sent.json"
    own.write_text('{"global_step": 2, "best_model_checkpoint": "/home/someone/run/checkpoint-2"}')
    sent.hardlink_to(own)
    _forget_best_checkpoint(sent)
    assert json.loads(sent.read_text()) == {"global_step": 2, "best_model_checkpoint": None}
    assert "someone" in own.read_text()
