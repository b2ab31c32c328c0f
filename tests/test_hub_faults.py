"""Publishing that fails: one clear message, an exit code, nothing half-published, and no token in any output."""

import json
import math
import shutil
from pathlib import Path

import pytest
from local_hub import UNASKED
from safetensors.torch import load_file, save_file

from llama_vid.modeling import LlamaVidForConditionalGeneration
from llama_vid.session import TINY_CHECKPOINT

pytest_plugins = ["local_hub"]

# The command line, many times in one process: arguments as JSON, exit codes and what was printed back. `--full` is no
# option: the disk is full when a card is to be written. Neither is `--unasked`.
COMMANDS = """
import contextlib, errno, io, json, pathlib, sys
import llama_vid.hub
from llama_vid.cli import main

ask = llama_vid.hub.ask_as_a_stranger
write_text = pathlib.Path.write_text
def no_space(path, text, **options):
    if path.suffix == ".md":  # under whatever name it is written first
        write_text(path, text[:100], **options)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    return write_text(path, text, **options)

results = []
for arguments in json.loads(sys.argv[1]):
    pathlib.Path.write_text = no_space if "--full" in arguments else write_text
    llama_vid.hub.ask_as_a_stranger = (lambda *_: "") if "--unasked" in arguments else ask
    sys.argv[1:] = ["publish", *(argument for argument in arguments if argument not in ("--full", "--unasked"))]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as end:
            results.append([end.code, printed.getvalue()])
print(json.dumps(results))
"""


def spoil_bin(folder: Path):
    (folder / "pytorch_model.bin").write_bytes(b"weights")


def spoil_code(folder: Path):
    (folder / "handler.py").write_text("print('mine')")


def spoil_link(folder: Path):
    (folder / "notes.txt").symlink_to("/etc/hostname")


def spoil_config(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["_name_or_path"] = "/data/models/vicuna"
    (folder / "config.json").write_text(json.dumps(config))


def spoil_secret(folder: Path):
    (folder / "notes.md").write_text("Log in with hf_" + "s" * 34)


def spoil_email(folder: Path):
    (folder / "notes.md").write_text("Ask jane" + "@example.org.")


def spoil_home(folder: Path):
    (folder / "notes.md").write_text("Trained in /home" + "/jane/runs.")


def spoil_auto_map(folder: Path):
    path = folder / "processor_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoProcessor": "nobody/code--processing.Processor"}}
    path.write_text(json.dumps(config))


def spoil_processor(folder: Path):
    (folder / "processor_config.json").unlink()


def spoil_weights(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.context_attention.query_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_base(folder: Path, name: str = "someone/nothing"):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))


def spoil_code_of_base(folder: Path):
    spoil_base(folder, "someone/elsewhere")


def spoil_nothing(folder: Path):
    pass


# What is done to the folder, arguments, and what is said.
FAULTS = {
    "a .bin": (spoil_bin, [], "pytorch_model.bin (neither safetensors"),
    "foreign code": (spoil_code, [], "handler.py (code that is not this package's)"),
    "a link": (spoil_link, [], "notes.txt (a link to a folder, or out of this one)"),
    "a local path": (spoil_config, [], "config.json: `text_config._name_or_path` is the local path"),
    "a secret": (spoil_secret, [], "notes.md, line 1: a Hugging Face token"),
    "an address": (spoil_email, [], "notes.md, line 1: an e-mail address"),
    "a home": (spoil_home, [], "notes.md, line 1: a home directory"),
    "code of elsewhere": (
        spoil_auto_map,
        [],
        "processor_config.json: `auto_map.AutoProcessor` names the code 'nobody/code--processing.Processor'",
    ),
    "no processor": (spoil_processor, [], "processor_config.json is missing"),
    "a missing tensor": (
        spoil_weights,
        [],
        "does not load and answer on its own: ValueError: missing keys in the weights: "
        "model.context_attention.query_proj.weight",
    ),
    "a base that is not there": (
        spoil_base,
        [],
        "The base `someone/nothing` that adapter_config.json names cannot be had from the Hub (RepositoryNotFound",
    ),
    "a base with code from elsewhere": (
        spoil_code_of_base,
        [],
        "The config.json of `someone/elsewhere` names code of another repository, which is not run here",
    ),
    "a full disk": (spoil_nothing, ["--full"], "The card cannot be written to"),
    "no adapter": (spoil_nothing, ["--merge"], "`merge` is for adapters"),
    "a wrong token": (
        spoil_nothing,
        ["--unasked", "--token", "hf_" + "q" * 34],
        "The Hub does not know this token (401)",
    ),
    "no permission": (
        spoil_nothing,
        ["--unasked", "--token", "reader"],
        "This token may not write to someone/fault (403)",
    ),
}


@pytest.fixture(scope="module")
def outcomes(hub, tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and output of every fault."""
    commands = []
    for spoil, options, _ in FAULTS.values():
        folder = tmp_path_factory.mktemp("fault") / "checkpoint"
        shutil.copytree(TINY_CHECKPOINT, folder, ignore=shutil.ignore_patterns("README.md"))
        spoil(folder)
        options = [hub.READER if option == "reader" else option for option in options]
        commands.append([str(folder), "someone/fault", *options])
    hub.create("someone/data", type="dataset")
    elsewhere = {"model_type": "llama_vid", "auto_map": {"AutoConfig": "nobody/code--configuration.Config"}}
    hub.create("someone/elsewhere").commit("main", "a model", {"config.json": json.dumps(elsewhere).encode()})
    commands += [
        [commands[-1][0], "someone/data", "--unasked"],
        [commands[-1][0], "stranger/fault", "--unasked"],
        [commands[-1][0], "fault"],
        [commands[-1][0] + "-missing", "someone/fault"],
    ]
    result = hub.run("-c", COMMANDS, json.dumps(commands))
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout.splitlines()[-1])
    names = [*FAULTS, "another type", "another owner", "no owner", "no folder"]
    # What may be there afterwards is the card, and a repository's first commit.
    for (folder, *_), name in zip(commands, names, strict=True):
        beside = [path.name for path in Path(folder).parent.iterdir()]
        assert beside == ["checkpoint"], name
        if "--full" in FAULTS.get(name, ((), ()))[1]:
            assert not list(Path(folder).glob("*README*"))
            assert not list(Path(folder).glob(".*"))
    return dict(zip(names, outcomes, strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told(outcomes, fault):
    code, output = outcomes[fault]
    assert code == 1, output
    [line] = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert FAULTS[fault][2] in line
    assert "Traceback" not in output


def test_the_wrong_repository(outcomes):
    for fault, message in {
        "another type": "`someone/data` is a dataset on the Hub and no model: choose another repo_id.",
        "another owner": "This token may not write to stranger/fault (403)",
        "no owner": "`repo_id='fault'` names no owner",
        "no folder": "is no folder",
    }.items():
        code, output = outcomes[fault]
        assert code == 1
        assert message in output


def test_no_fault_publishes_anything(hub, outcomes):
    assert set(hub.repos) == {"someone/data", "someone/elsewhere"}
    assert len(hub.repos["someone/elsewhere"].commits) == 2
    assert hub.uploads == []


def test_without_a_token(hub):
    result = hub.llama_vid("publish", TINY_CHECKPOINT, "someone/fault", token=None)
    assert result.returncode == 1
    assert "There is no token for the Hub: run `hf auth login`" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupted_upload_goes_on_where_it_was(hub, tmp_path):
    """The client itself tries again before it gives up, at last after 8 seconds, which are skipped here."""
    folder = shutil.copytree(TINY_CHECKPOINT, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    model = LlamaVidForConditionalGeneration.from_pretrained(TINY_CHECKPOINT)
    model.save_pretrained(folder, max_shard_size=model.num_parameters() * 4 // 2)
    shards = len(list(folder.glob("model-*.safetensors")))
    assert shards > 1

    before = len(hub.uploads)
    hub.uploads_before_cut = 1
    in_no_time = UNASKED + "import time; time.sleep = lambda seconds: None\n"
    result = hub.llama_vid("publish", folder, "someone/interrupted", before=in_no_time)
    assert result.returncode == 1
    assert "The connection to the Hub failed" in result.stderr
    assert "before a commit to someone/interrupted was confirmed. Publish again" in result.stderr
    assert "Traceback" not in result.stderr
    repo = hub.repos["someone/interrupted"]
    assert set(repo.files()) == {".gitattributes"}
    assert len(hub.uploads) == before + 1

    hub.uploads_before_cut = math.inf
    result = hub.llama_vid("publish", folder, "someone/interrupted", before=UNASKED)
    assert result.returncode == 0, result.stderr
    assert len(repo.commits) == 2
    weights = {name for name in repo.files() if name.endswith(".safetensors")}
    assert len(weights) == shards
    sent = hub.uploads[before:]
    assert len(sent) == len(set(sent)) >= shards  # nothing twice
