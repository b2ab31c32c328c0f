"""What is published loads for a stranger, by its name and with transformers alone, and is what was in the folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from local_hub import UNASKED
from peft import LoraConfig, get_peft_model
from PIL import Image
from small_videos import pictures

from llama_vid import publish as publish_here
from llama_vid.data.clips import write_clip
from llama_vid.hub_card import MARKER
from llama_vid.hub_files import code_files
from llama_vid.modeling import LlamaVidForConditionalGeneration, LlamaVidProcessor
from llama_vid.session import TINY_CHECKPOINT
from llama_vid.training.trained_modules import TrainedModules, load_trained_modules, save_trained_modules

pytest_plugins = ["local_hub"]

TESTS = str(Path(__file__).parent)
TINY = "someone/llama-vid-tiny"
BASE = "someone/base"  # of the adapter: what tiny is, but code that nobody has looked at

# Of earlier commits, what publishing leaves as it is, and what it takes away besides weights.
KEPT = ["notes/more.safetensors", "handler.py", "picture.png"]
OUTDATED = ["provenance.json", "loss_curve.png"]
OUTDATED += [
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "additional_chat_templates/tools.jinja",
]
OUTDATED += ["vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "qformer_tokenizer/special_tokens_map.json"]

# Publishes several folders in one process: keyword arguments of `publish` as JSON, and what came of it back. Those
# that a test here loads by their names later are `unasked`.
PUBLISH = """
import json, sys
import llama_vid.hub
from llama_vid import publish
ask = llama_vid.hub.ask_as_a_stranger
done = []
for arguments in json.loads(sys.argv[1]):
    llama_vid.hub.ask_as_a_stranger = (lambda *_: "") if arguments.pop("unasked", False) else ask
    done.append(publish(**arguments))
print(json.dumps([[publication.url, publication.is_new, str(publication)] for publication in done]))
"""

# What a program does that only has transformers: models by their names (and revisions), logits about a video.
STRANGER = f"""
import json, sys
sys.modules["llama_vid"] = None
sys.path.insert(0, {TESTS!r})
import torch, transformers
from remote_code_script import answers, logits
from transformers import AutoModelForImageTextToText, AutoProcessor
models, files = json.loads(sys.argv[1]), json.loads(sys.argv[2])
report = {{"transformers": transformers.__version__, "logits": {{}}}}
for label, (name, revision, adapter) in models.items():
    options = {{"trust_remote_code": True}}
    processor = AutoProcessor.from_pretrained(adapter or name, revision="main" if adapter else revision, **options)
    model = AutoModelForImageTextToText.from_pretrained(name, revision=revision, **options)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter).eval()
    # In double precision, as float32 rounds the sums of an adapter and its base in another order than merged ones.
    report["logits"][label] = logits(processor, model.double(), files)["video"].tolist()
if len(sys.argv) > 3:
    report["answers"] = answers(sys.argv[3], files)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """`tiny`, `changed` (other weights), `adapter` for the published tiny, `modules`, a clip and a picture."""
    work = tmp_path_factory.mktemp("publishing")
    write_clip(work / "clip.mp4", pictures(16), fps=4)
    Image.fromarray(next(pictures(1))).save(work / "picture.png")
    model = LlamaVidForConditionalGeneration.from_pretrained(TINY_CHECKPOINT)
    processor = LlamaVidProcessor.from_pretrained(TINY_CHECKPOINT)
    for name in ("tiny", "changed", "modules"):
        processor.save_pretrained(work / name)
    model.save_pretrained(work / "tiny")

    torch.manual_seed(0)
    lora = LoraConfig(
        r=4,
        target_modules=r"model\.language_model\..*\.q_proj",
        modules_to_save=["context_attention", "multi_modal_projector"],
        init_lora_weights=False,
    )
    adapter = get_peft_model(LlamaVidForConditionalGeneration.from_pretrained(TINY_CHECKPOINT), lora)
    perturb(parameter for parameter in adapter.parameters() if parameter.requires_grad)
    adapter.save_pretrained(work / "adapter")
    config = json.loads((work / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = BASE
    (work / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    processor.save_pretrained(work / "adapter")

    perturb(model.model.context_attention.parameters())
    model.save_pretrained(work / "changed")
    model.config.save_pretrained(work / "modules")
    save_trained_modules(model, work / "modules", TrainedModules(["context_attention"], str(work / "tiny")))
    return work


@torch.no_grad()
def perturb(parameters):
    for parameter in parameters:
        parameter += 0.1 * torch.randn(parameter.shape)


@pytest.fixture(scope="module")
def published(hub, work) -> list:
    """What came of publishing: tiny, tiny again, other weights in its place, the adapter, merged, trained modules."""
    folder = {name: str(work / name) for name in ("tiny", "changed", "adapter", "modules")}
    earlier = {path.name: path.read_bytes() for path in (work / "adapter").iterdir() if path.is_file()}
    repo = hub.create("someone/merged")
    repo.commit("main", "an adapter", {**repo.files(), **earlier, **dict.fromkeys(KEPT + OUTDATED, b"")})
    base = {name: (work / "tiny" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    code = dict.fromkeys(code_files(), b"raise RuntimeError('foreign code runs')")
    hub.create(BASE).commit("main", "a model", {**base, **code, "checkpoint-1/model.safetensors": b"cut off"})
    return publish(
        hub,
        {"folder": folder["tiny"], "repo_id": TINY, "license": "apache-2.0"},
        {"folder": folder["tiny"], "repo_id": TINY, "license": "apache-2.0", "unasked": True},
        {"folder": folder["adapter"], "repo_id": "someone/adapter"},
        {"folder": folder["adapter"], "repo_id": "someone/merged", "merge": True, "unasked": True},
        {"folder": folder["modules"], "repo_id": "someone/completed", "private": True, "unasked": True},
        {"folder": folder["changed"], "repo_id": TINY, "unasked": True},
    )


def publish(hub, *arguments: dict, version: str = "") -> list:
    result = hub.run("-c", PUBLISH, json.dumps(arguments), PYTHONPATH=version)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def stranger(hub, work: Path, models: dict, version: str = "", *pipelines: str, home: Path) -> dict:
    """A stranger's report; his cache is empty."""
    files = {"image": str(work / "picture.png"), "video": str(work / "clip.mp4")}
    arguments = ("-c", STRANGER, json.dumps(models), json.dumps(files), *pipelines)
    result = hub.run(*arguments, PYTHONPATH=version, HF_HOME=str(home))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_stranger_gets_what_was_in_the_folder(hub, work, published, version, tmp_path):
    first_commit = published[0][0].rpartition("/")[2]
    models = {
        "local": (str(work / "tiny"), "main", None),
        "pinned": (TINY, first_commit, None),
        "changed, local": (str(work / "changed"), "main", None),
        "main": (TINY, "main", None),
    }
    report = stranger(hub, work, models, version, TINY, home=tmp_path)
    if version:
        assert report["transformers"].startswith("5.10.")
    logits = report["logits"]
    assert logits["pinned"] == logits["local"]
    assert logits["main"] == logits["changed, local"] != logits["local"]

    assert set(report["answers"]) == {"image", "video", "videos"}
    processor = LlamaVidProcessor.from_pretrained(work / "changed")
    model = LlamaVidForConditionalGeneration.from_pretrained(work / "changed")
    content = [{"type": "video", "path": str(work / "clip.mp4")}, {"type": "text", "text": "What is moving?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    question, both = processor.batch_decode([prompt["input_ids"][0], output[0]], skip_special_tokens=True)
    assert report["answers"]["video"] == both.removeprefix(question)


def test_an_adapter_its_base_and_both_merged(hub, work, published, version, tmp_path):
    first_commit = published[0][0].rpartition("/")[2]
    # The adapter is for what the base was.
    models = {"adapter": (TINY, first_commit, "someone/adapter"), "merged": ("someone/merged", "main", None)}
    models["modules"] = ("someone/completed", "main", None)
    files = hub.repos["someone/adapter"].files()
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    logits = stranger(hub, work, models, version, home=tmp_path)["logits"]
    pair = [torch.tensor(logits[label], dtype=torch.float64) for label in ("adapter", "merged")]
    torch.testing.assert_close(*pair, atol=1e-5, rtol=0)

    completed = load_trained_modules(work / "modules")
    changed = LlamaVidForConditionalGeneration.from_pretrained(work / "changed")
    assert all(torch.equal(a, b) for a, b in zip(completed.parameters(), changed.parameters(), strict=True))
    assert not any(name.startswith("trained_modules") for name in hub.repos["someone/completed"].files())
    assert hub.repos["someone/completed"].files()["model.safetensors"] == hub.repos[TINY].files()["model.safetensors"]


def test_one_commit_each_and_none_without_changes(hub, published):
    urls, are_new = [entry[0] for entry in published], [entry[1] for entry in published]
    assert are_new == [True, False, True, True, True, True]
    assert urls[0] == urls[1]
    messages = [message for message, _ in hub.repos[TINY].commits.values()]
    assert messages == ["initial commit", "Upload model with llama-vid", "Upload model with llama-vid"]
    assert [m for m, _ in hub.repos["someone/adapter"].commits.values()][1:] == ["Upload adapter with llama-vid"]
    assert "nothing has changed since" in published[1][2]
    assert hub.repos["someone/completed"].private
    assert not hub.repos[TINY].private


def test_what_is_in_the_repository(hub, work, published):
    files = hub.repos[TINY].files()
    for name, path in code_files().items():
        assert files[name] == path.read_bytes(), name
    assert {"config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"} <= set(files)
    assert files["README.md"] == (work / "changed" / "README.md").read_bytes()
    card = hub.repos[TINY].commits[published[0][0].rpartition("/")[2]][1]["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "base_model: someone/base" in hub.repos["someone/adapter"].files()["README.md"].decode()
    assert "base_model_relation: finetune" in hub.repos["someone/merged"].files()["README.md"].decode()


def test_a_merged_model_takes_the_place_of_its_adapter(hub, published):
    files = set(hub.repos["someone/merged"].files())
    assert set(KEPT) < files
    assert files - set(KEPT) == set(hub.repos["someone/completed"].files())


def test_a_dry_run_writes_the_card_and_sends_nothing(hub, work, tmp_path):
    folder = shutil.copytree(work / "tiny", tmp_path / "tiny")
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "training_args.bin").write_bytes(b"state")
    options = {"token": None, "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = ["publish", folder, "someone/dry", "--dry-run", "--dataset", "someone/films"]
    result = hub.llama_vid(*command, before=UNASKED, **options)
    assert result.returncode == 0, result.stderr
    assert f"{(folder / 'model.safetensors').stat().st_size:,}  model.safetensors\n" in result.stdout
    assert "left out: training_args.bin" in result.stdout
    assert "nothing was uploaded" in result.stdout
    card = (folder / "README.md").read_text()
    assert MARKER in card
    assert "- someone/films" in card


def test_how_a_checkpoint_samples_videos_is_no_obstacle(work, tmp_path):
    settings = {"num_frames": 16, "start": 5, "end": 9.5}
    folder = shutil.copytree(work / "tiny", tmp_path / "tiny")
    LlamaVidProcessor.from_pretrained(folder, **settings).save_pretrained(folder)
    stored = json.loads((folder / "processor_config.json").read_text())["video_processor"]
    assert stored.items() >= settings.items()
    assert publish_here(folder, "someone/tiny", dry_run=True).files.keys() >= code_files().keys()


def test_cards_that_were_written_on_the_hub(hub, work, tmp_path):
    own = shutil.copytree(work / "tiny", tmp_path / "own")
    (own / "README.md").write_text("# Mine\n")
    generated = {"folder": str(shutil.copytree(work / "tiny", tmp_path / "tiny")), "license": "apache-2.0"}
    licence = "---\nlicense: mit\n---\n"
    there = {
        "someone/edited": f"{licence}# Edited on the website\n",
        "someone/licensed": licence,
        "someone/own": "# Old\n",
    }
    for repo_id, card in there.items():
        repo = hub.create(repo_id)
        repo.commit("main", "Update README.md", {**repo.files(), "README.md": card.encode()})
    jobs = [{"repo_id": repo_id, "unasked": True, **generated} for repo_id in ("someone/edited", "someone/licensed")]
    jobs.append({"repo_id": "someone/own", "unasked": True, "folder": str(own)})
    result = hub.run("-c", PUBLISH, json.dumps(jobs))
    assert result.returncode == 0, result.stderr

    cards = {repo_id: hub.repos[repo_id].files()["README.md"].decode() for repo_id in there}
    assert cards["someone/edited"] == there["someone/edited"]
    assert "model.safetensors" in hub.repos["someone/edited"].files()
    assert MARKER in cards["someone/licensed"]
    assert cards["someone/own"] == "# Mine\n"
    kept, replaced = [line for line in result.stderr.splitlines() if "README.md" in line]
    assert kept.startswith(
        "The README.md of someone/edited was written by hand on the Hub and is kept: to have it repl"
    )
    assert "someone/licensed named the licence mit; the one that takes its place names apache-2.0." in replaced


def test_branches_and_pull_requests_and_cards_of_ones_own(hub, work, version, tmp_path):
    """With both clients: huggingface_hub 1.x and 2.x differ on the wire."""
    folder = shutil.copytree(work / "tiny", tmp_path / "tiny")
    (folder / "README.md").write_text("# Mine\n")
    repo_id = f"someone/branches-{'floor' if version else 'installed'}"
    common = {"folder": str(folder), "repo_id": repo_id, "private": True, "unasked": True}
    request = {**common, "create_pr": True}
    branch, request = publish(hub, {**common, "revision": "trial"}, request, version=version)
    repo = hub.repos[repo_id]
    assert repo.private
    assert set(repo.files()) == {".gitattributes"}
    for name in ("trial", "refs/pr/1"):
        assert repo.files(name)["README.md"] == b"# Mine\n"
    assert branch[0] == f"{hub.url}/{repo_id}/commit/{repo.branches['trial']}"
    assert request[0] == f"{hub.url}/{repo_id}/discussions/1"
    assert request[2].splitlines()[-1] == request[0]
