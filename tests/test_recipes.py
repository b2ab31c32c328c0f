"""The recipes: arguments that parse, the paper's values, stages that follow one another, and a README that is right."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from peft import get_peft_model
from recipe_memory import DEVICES, architecture, estimate
from safetensors.torch import load_file
from small_checkpoint import UNTRAINED
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, SFTConfig, TrlParser, get_quantization_config

from llama_vid.cli import app, train
from llama_vid.data.mixture import load_mixture
from llama_vid.training.arguments import LlamaVidScriptArguments
from llama_vid.training.module_names import STAGE_MODULES
from llama_vid.training.stages import choose_modules, lora_config

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
CONFIGS = FOLDER / "accelerate_configs"
RECIPES = sorted(
    path
    for path in FOLDER.glob("**/*.yaml")
    if path.parent != CONFIGS and "stage" in (yaml.safe_load(path.read_text()) or {})
)
BIG = [path for path in RECIPES if path.parent.name != "tiny"]
PAPERS = [path for path in RECIPES if path.parent.name.startswith("llama-vid-")]
ADAPTERS = [path for path in PAPERS if path.stem.endswith("lora")]

# Learning rate, global batch and context of each stage, in the paper and its released scripts.
VALUES = {1: (1e-3, 256, 2048), 2: (2e-5, 128, 4096), 3: (2e-5, 8, 65536)}
LORA_RATE = 2e-4
SCHEDULE = {
    "optim": "adamw_torch_fused",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "num_train_epochs": 1,
    "bf16": True,
    "gradient_checkpointing": True,
}


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def each(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=name_of)


def settings_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse(path: Path):
    """What `llama-vid train` parses. bfloat16 is an error without a GPU, unless a CPU is what one wants."""
    parser = TrlParser((LlamaVidScriptArguments, SFTConfig, ModelConfig))
    return parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true"])


def size_and_side(path: Path) -> tuple[str, int]:
    """`7b`, 224 and the like."""
    size, side = re.search(r"llama-vid-(\d+b)-(?:full-)?(\d+)", path.read_text(encoding="utf-8")).groups()
    return size, int(side)


def launches(path: Path) -> list[str]:
    """The accelerate configs that a recipe's header names."""
    [line] = re.findall(r"^# Launch with (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return re.findall(r"(\w+)\.yaml", line)


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run_script(name: str, *arguments: str, monkeypatch) -> None:
    """Run a script of the README, which begins with its name."""
    [block] = [block for block in code_blocks("python") if block.startswith(f"# {name} ")]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    exec(compile(block, name, "exec"), {"__name__": "__main__"})


def test_every_model_has_the_stages_that_make_sense():
    with_video = {"stage3", "stage3-frozen-text-decoder", "stage3-lora", "stage3-qlora"}
    image_only = {"stage1", "stage2", "stage2-lora", "stage2-qlora"}
    for size in ("7b", "13b"):
        for folder, expected in ((f"{size}-224-video", image_only | with_video), (f"{size}-336", image_only)):
            assert {path.stem for path in (FOLDER / f"llama-vid-{folder}").glob("*.yaml")} == expected


@each(RECIPES)
def test_a_recipe_parses(path):
    script_args, training_args, model_args = parse(path)
    assert script_args.train_datasets
    assert training_args.output_dir
    assert model_args.model_name_or_path


@each(PAPERS)
def test_values_are_the_papers(path):
    script_args, training_args, model_args = parse(path)
    assert path.stem.startswith(f"stage{script_args.stage}")
    rate, batch, length = VALUES[script_args.stage]
    if model_args.use_peft:
        assert training_args.learning_rate == LORA_RATE
        assert set(script_args.module_learning_rates.values()) == {rate}
    else:
        assert training_args.learning_rate == rate
        assert not script_args.module_learning_rates
    per_device, steps = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    assert per_device * steps * DEVICES == batch
    assert f"# {per_device} x {steps} x {DEVICES} devices = a global batch of {batch}" in path.read_text()
    assert training_args.max_length == length
    assert {name: getattr(training_args, name) for name in SCHEDULE} == SCHEDULE
    assert model_args.dtype == "bfloat16"
    assert script_args.save_only_trained == (script_args.stage == 1)


@each([path for path in PAPERS if "stage3" in path.stem])
def test_stage_3_stretches_the_context_and_reads_features(path):
    script_args, training_args, _ = parse(path)
    assert script_args.context_length == training_args.max_length == 65536
    films = script_args.train_datasets[0]
    assert films.format == "long_video_qa"
    assert films.features_root
    assert films.subtitles_root
    assert films.weight == 1
    assert all(data.weight < 1 for data in script_args.train_datasets[1:])


@each(PAPERS)
def test_data_fits_the_model(path):
    formats = [data.get("format") for data in settings_of(path)["train_datasets"]]
    stage, (_, side) = settings_of(path)["stage"], size_and_side(path)
    image_only = {1: ["llava_captions"], 2: ["llava"]}
    with_video = {1: ["llava_captions", "webvid"], 2: ["llava", "video_chatgpt"]}
    with_video[3] = ["long_video_qa", *with_video[2]]
    assert formats == (image_only if side == 336 else with_video)[stage]


@each(PAPERS)
def test_what_trains(path):
    settings = settings_of(path)
    stage = settings["stage"]
    trained = choose_modules(architecture(*size_and_side(path)), stage, settings.get("train_modules"))
    expected = set(STAGE_MODULES[stage]) - {"qformer_vision_proj"}
    if "frozen" in path.stem:
        expected = {"multi_modal_projector", "language_model", "lm_head"}
    elif path in ADAPTERS and stage == 3:
        expected = {"multi_modal_projector", "language_model"}
    assert set(trained) == expected


@each(BIG)
def test_adapters(path):
    script_args, _, model_args = parse(path)
    assert model_args.use_peft == path.stem.endswith("lora")
    assert model_args.load_in_4bit == path.stem.endswith("qlora")
    if not model_args.use_peft:
        return
    model = architecture(*size_and_side(path))
    trained = choose_modules(model, script_args.stage, script_args.train_modules)
    config = lora_config(model, trained, model_args)
    assert config.target_modules.startswith(r"model\.language_model\.")
    assert set(script_args.module_learning_rates) == set(config.modules_to_save)
    if model_args.load_in_4bit:
        quantization = get_quantization_config(model_args)
        assert quantization.bnb_4bit_quant_type == "nf4"
        assert quantization.bnb_4bit_compute_dtype == torch.bfloat16


@each(PAPERS)
def test_a_stage_begins_where_the_one_before_ended(path):
    settings = settings_of(path)
    folder = path.parent.name
    assert settings["output_dir"] == f"runs/{folder}/{path.stem}"
    source, stage = settings["model_name_or_path"], settings["stage"]
    if stage == 1:
        assert source == f"models/{folder.removesuffix('-video')}-new"
        assert source in README
        return
    before = path.with_name(f"stage{stage - 1}.yaml")
    if stage == 3 and path in ADAPTERS:
        before, source = path.with_name(path.name.replace("3", "2")), source.removesuffix("-merged")
        assert source != settings["model_name_or_path"]
    assert source == settings_of(before)["output_dir"]


@pytest.mark.parametrize(
    ("name", "distributed_type", "processes"),
    [
        ("single_device", "NO", 1),
        ("ddp", "MULTI_GPU", DEVICES),
        ("fsdp2", "FSDP", DEVICES),
        ("zero2", "DEEPSPEED", DEVICES),
        ("zero3", "DEEPSPEED", DEVICES),
    ],
)
def test_an_accelerate_config_is_what_its_name_says(name, distributed_type, processes):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # unknown keys are an error
    assert config.distributed_type.value == distributed_type
    assert (config.num_processes, config.mixed_precision) == (processes, "bf16")
    assert config.fsdp_config.get("fsdp_version") == (2 if name == "fsdp2" else None)
    assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(name)
    assert config.gpu_ids == {"single_device": "0", "ddp": "all"}.get(name)  # with all, one process would see them all
    assert sorted(path.stem for path in CONFIGS.glob("*")) == ["ddp", "fsdp2", "single_device", "zero2", "zero3"]


def environment_of(name: str, processes: int, monkeypatch) -> dict[str, str]:
    """What `accelerate launch --config_file … --num_processes …` tells the processes."""
    launched = []
    for launcher in ("deepspeed_launcher", "multi_gpu_launcher"):
        monkeypatch.setattr(launch, launcher, launched.append)
    arguments = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", str(processes), "script"]
    launch.launch_command(launch.launch_command_parser().parse_args(arguments))
    [arguments] = launched
    assert arguments.num_processes == processes
    if arguments.use_deepspeed:
        return prepare_deepspeed_cmd_env(arguments)[1]
    return prepare_multi_gpu_env(arguments)


def test_the_launcher_takes_what_the_configs_say(monkeypatch):
    assert environment_of("zero2", 2, monkeypatch)["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    zero3 = environment_of("zero3", 2, monkeypatch)
    assert zero3["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert zero3["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == zero3["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


def test_fsdp_shards_the_layers_of_the_model(monkeypatch):
    for key, value in environment_of("fsdp2", 2, monkeypatch).items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    model = AutoModelForImageTextToText.from_pretrained(UNTRAINED)
    plugin.set_auto_wrap_policy(model)
    is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = {id(module) for module in model.modules() if is_wrapped(module)}
    base = model.model
    layers = [*base.vision_tower.encoder.layers, *base.qformer.encoder.layer, *base.language_model.layers]
    assert wrapped == set(map(id, layers))


@each(RECIPES)
def test_the_readme_has_a_recipe(path):
    assert f"]({name_of(path)})" in README or f"]({path.parent.name})" in README
    assert path.parent.name == "tiny" or all((CONFIGS / f"{name}.yaml").exists() for name in launches(path))


def test_paths_of_the_readme_exist():
    links = {link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link}
    assert len(links) > 20
    assert not [link for link in links if not (FOLDER / link).exists()]
    anchors = set(re.findall(r"\]\(#([^)]+)\)", README))
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    assert anchors <= {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    commands = "\n".join(code_blocks("bash"))
    variables = dict(re.findall(r"^(R|A)=(\S+)$", commands, re.MULTILINE))
    commands = re.sub(r"\$(R|A)\b", lambda match: variables[match[1]], commands)
    named = set(re.findall(r"recipes/\S+", commands))
    assert len(named) > 8
    assert not [path for path in named if not (ROOT / path).exists()]
    named = re.findall(r"`(llama-vid-\S+\.yaml)`", README)
    assert not [path for path in named if not (FOLDER / path).exists()]


def test_commands_of_the_readme_exist():
    used = set(re.findall(r"llama-vid\"?\)?\"? (\w+) ", "\n".join(code_blocks("bash"))))
    assert used == {"create", "convert", "train", "features", "ask", "publish"}
    assert used <= {command.name or command.callback.__name__ for command in app.registered_commands}


def test_the_command_line_names_a_recipe():
    [path] = re.findall(r"recipes/\S+\.yaml", inspect.getdoc(train))
    assert (ROOT / path) in RECIPES
    command = [sys.executable, "-m", "llama_vid.cli", "train", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert path in result.stdout


def test_there_are_no_addresses_that_nobody_has_looked_up():
    texts = [README, *(path.read_text(encoding="utf-8") for path in FOLDER.glob("**/*.yaml"))]
    assert not re.findall(r"\w+://\S+", "\n".join(texts))


@pytest.mark.parametrize("folder", ["data", "models", "runs"])
def test_git_ignores_what_recipes_make(folder):
    """In the root alone: the package has a folder named data."""
    assert any(f"{folder}/" in path.read_text(encoding="utf-8") for path in RECIPES)
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert f"/{folder}/" in lines
    assert f"{folder}/" not in lines


def test_memory_of_the_readme_is_what_the_formula_gives():
    rows = re.findall(r"^\| \[\S+\]\((\S+\.yaml)\) \| (.*?) \| (\d+) \| (\d+) \| (\d+) \|$", README, re.MULTILINE)
    assert {row[0] for row in rows} == set(map(name_of, BIG))
    for name, launched_with, *stated in rows:
        path = FOLDER / name
        assert launched_with.split(", ") == launches(path)
        for config in launches(path):
            memory = estimate(*size_and_side(path), settings_of(path), config)
            assert stated == [f"{value / 1e9:.0f}" for value in (memory.state, memory.activations, memory.total)], name


def test_long_chats_are_split_without_losing_a_turn(tmp_path, monkeypatch):
    turns = [{"from": ("human", "gpt")[i % 2], "value": f"{i}."} for i in range(10)]
    turns[0]["value"] = "<image>\n0."
    records = [{"id": 0, "image": "0.png", "conversations": turns}, {"id": 1, "conversations": turns[2:]}]
    (tmp_path / "whole.json").write_text(json.dumps(records))
    run_script(
        "split_chats.py", *(str(tmp_path / name) for name in ("whole.json", "split.json")), "2", monkeypatch=monkeypatch
    )
    rows = load_mixture([{"path": str(tmp_path / "split.json"), "format": "llava"}], seed=0)
    chats = [json.loads(row["messages"]) for row in rows]
    assert [len(chat) for chat in chats] == [4, 4, 2, 8]
    shown = [[part["type"] for part in chat[0]["content"]] for chat in chats]
    assert shown == [["image", "text"]] * 3 + [["text"]]


def test_an_adapter_is_merged(tmp_path, monkeypatch):
    model = AutoModelForImageTextToText.from_pretrained(UNTRAINED)
    config = lora_config(model, choose_modules(model, 2), ModelConfig(use_peft=True, lora_r=2))
    config.init_lora_weights = False
    tuned = get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    AutoProcessor.from_pretrained(UNTRAINED).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "provenance.json").write_text('[{"step": "training"}]')
    folders = [str(tmp_path / name) for name in ("adapter", "merged")]
    run_script("merge_adapter.py", *folders, "65536", monkeypatch=monkeypatch)
    assert (tmp_path / "merged" / "provenance.json").read_text() == '[{"step": "training"}]'
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    expected = tuned.merge_and_unload().state_dict()
    assert all(torch.allclose(merged[name].float(), expected[name], atol=0.02, rtol=0.02) for name in merged)
    base = load_file(Path(UNTRAINED) / "model.safetensors")
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(merged[name].float(), base[name].float(), atol=0.02, rtol=0.02)
    config = AutoConfig.from_pretrained(tmp_path / "merged")
    assert config.context_length == 65536
    assert config.text_config.rope_parameters["factor"] == 65536 / 4096
    assert AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer.model_max_length == 65536


def test_a_context_is_stretched_where_it_is(tmp_path, monkeypatch):
    for part in (AutoModelForImageTextToText, AutoProcessor):
        part.from_pretrained(UNTRAINED).save_pretrained(tmp_path)
    expected = AutoConfig.from_pretrained(tmp_path).to_dict()
    run_script("stretch_context.py", str(tmp_path), "65536", monkeypatch=monkeypatch)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.context_length == 65536
    found = config.to_dict()
    rope = found["text_config"].pop("rope_parameters")
    assert rope == {**expected["text_config"].pop("rope_parameters"), "rope_type": "linear", "factor": 16}
    assert found == expected
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.model_max_length == 65536
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).config.context_length == 65536


def test_ones_own_data_are_read(tmp_path):
    [example] = code_blocks("json")
    (tmp_path / "train.json").write_text(example)
    [data] = settings_of(FOLDER / "own-data" / "qlora.yaml")["train_datasets"]
    rows = load_mixture([{**data, "path": str(tmp_path / "train.json")}], seed=0)
    video, image = (json.loads(row["messages"]) for row in rows)
    assert [part["type"] for part in video[2]["content"]] == ["video", "text"]  # shown again
    assert video[0]["content"][0]["path"] == "data/own/clips/gate.mp4"
    assert image[0]["content"][0]["type"] == "image"


@pytest.mark.parametrize("block", code_blocks("python"), ids=lambda block: block.splitlines()[0])
def test_python_of_the_readme_compiles(block):
    compile(block, "README.md", "exec")
