"""Evaluation by generated answers: what is asked, how answers are compared, and that batches change nothing."""

import json
import subprocess
import sys

import pytest
import torch
from small_chats import CAT, DOG, THINKING, assistant, image, system, user, video, with_template
from small_checkpoint import UNTRAINED
from small_videos import pictures
from transformers import AutoModelForImageTextToText, AutoProcessor

from llama_vid import extract_features
from llama_vid.data.clips import write_clip
from llama_vid.data.mixture import load_mixture
from llama_vid.modeling.chat_templates_llama_vid import CHAT_TEMPLATES, wrap_chat_template
from llama_vid.training.evaluation import (
    GeneratedAnswer,
    accuracy,
    answer_accuracy,
    generate_answers,
    normalize_answer,
)

CHATS = [
    [user(image(CAT), "What is it?"), assistant("A cat."), user(image(CAT), "Where?"), assistant("Left.")],
    [system("Be short."), user(video(), "What moves?"), assistant("The red circle, slowly, to the right.")],
    [user("Is there any?"), {"role": "assistant", "content": "No."}],
    [user(image(DOG), "And this animal, which one is it?"), assistant("A dog.")],
]
ROWS = [{"messages": chat} for chat in CHATS]


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(UNTRAINED)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(UNTRAINED)


def said(model, processor, rows, **options) -> list[str]:
    return [answer.text for answer in generate_answers(model, processor, rows, max_new_tokens=6, **options)]


def test_answers_are_greedy_and_no_matter_of_batches(model, processor):
    alone = []
    for chat in CHATS:
        inputs = processor.apply_chat_template(
            chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        alone.append(processor.decode(ids, skip_special_tokens=True).strip())
    assert len(set(alone)) > 1
    assert said(model, processor, ROWS) == said(model, processor, ROWS, batch_size=3) == alone
    expected = [answer.expected for answer in generate_answers(model, processor, ROWS)]
    assert expected == ["Left.", "The red circle, slowly, to the right.", "No.", "A dog."]


def test_earlier_answers_stay_in_the_prompt(model, processor, monkeypatch):
    prompts = []
    generate = model.generate

    def remember(**inputs):
        prompts.extend(processor.batch_decode(inputs["input_ids"], skip_special_tokens=True))
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", remember)
    generate_answers(model, processor, ROWS[:1])
    assert "A cat." in prompts[0]
    assert "Left" not in prompts[0]
    assert prompts[0].endswith("Where? ASSISTANT:")


def test_files_and_features_of_a_mixture(model, processor, tmp_path):
    write_clip(tmp_path / "clip.mp4", pictures(12), fps=4)
    extract_features(tmp_path / "clip.mp4", tmp_path / "features", model=UNTRAINED)
    rows = (
        '{"video": "clip.mp4", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A"}]}'
    )
    (tmp_path / "chats.jsonl").write_text(rows)
    config = {"path": str(tmp_path / "chats.jsonl"), "format": "llava"}
    from_file = load_mixture([config], seed=0)
    from_features = load_mixture([{**config, "features_root": str(tmp_path / "features")}], seed=0)
    assert said(model, processor, from_file) == said(model, processor, from_features) != [""]


def test_the_share_of_right_answers_by_kind(model, processor):
    found = said(model, processor, ROWS)
    chats = [[*chat[:-1], assistant(text)] for chat, text in zip(CHATS, [*found[:3], "unsaid"], strict=True)]
    kinds = ["what,where", "what", "where", "where"]
    rows = [{"messages": chat, "kind": kind} for chat, kind in zip(chats, kinds, strict=True)]
    shares = answer_accuracy(model, processor, rows, max_new_tokens=6)
    assert shares == {"exact_match": 3 / 4, "exact_match_what": 1.0, "exact_match_where": 2 / 3}
    assert answer_accuracy(model, processor, ROWS) == {"exact_match": 0.0}


def test_captions_end_with_their_line(model, processor, monkeypatch):
    captions = processor.tokenizer(["A cat.\nA cat."], add_special_tokens=False, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(
        model, "generate", lambda **inputs: torch.cat([inputs["input_ids"], captions.expand(1, -1)], -1)
    )
    chat = [user(image()), assistant("A cat.")]
    assert said(model, processor, [{"messages": chat}], chat_template="plain") == ["A cat."]
    assert said(model, processor, [{"messages": chat}]) == ["A cat.\nA cat."]


def test_what_templates_write_before_an_answer_is_expected(model, processor, monkeypatch):
    taught = "<think>\n\n</think>\n\nA cat."
    ids = processor.tokenizer([taught + "</s>"], add_special_tokens=False, return_tensors="pt")["input_ids"]

    def say(**inputs):
        return torch.cat([inputs["input_ids"], ids[:, : inputs["max_new_tokens"]]], -1)

    monkeypatch.setattr(model, "generate", say)
    rows = [{"messages": [user(image()), assistant("A cat.")]}]
    [answer] = generate_answers(model, processor, rows, chat_template=wrap_chat_template(THINKING))
    assert (answer.text, answer.expected) == (taught, taught)
    # Where the prompt is no beginning of the chat, the words alone.
    template = CHAT_TEMPLATES["vicuna_v1"].replace("{{ 'ASSISTANT:' }}{%- endif", "{{ 'ASSISTANT: <think>' }}{%- endif")
    assert template != CHAT_TEMPLATES["vicuna_v1"]
    [answer] = generate_answers(model, processor, rows, chat_template=template)
    assert answer.expected == "A cat."


def test_templates_by_name(model, processor):
    several = with_template(processor, {"default": CHAT_TEMPLATES["vicuna_v1"], "short": CHAT_TEMPLATES["chatml"]})
    assert said(model, several, ROWS) == said(model, processor, ROWS)
    assert said(model, several, ROWS, chat_template="short") == said(model, processor, ROWS, chat_template="chatml")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, processor, training):
    model.train(training)
    generate_answers(model, processor, ROWS[2:3])
    assert model.training == training
    with pytest.raises(ValueError, match=r"lost\.mp4"):
        generate_answers(model, processor, [{"messages": [user(video("lost.mp4", "path"), "?"), assistant("A.")]}])
    assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_answers_are_compared_without_case_spaces_and_a_full_stop():
    assert GeneratedAnswer(" a  Red\ncircle ", "A red circle.").is_right
    assert not GeneratedAnswer("A red circle..", "A red circle").is_right
    assert not GeneratedAnswer("circle", "A red circle").is_right
    assert normalize_answer("Yes .") == "yes"
    right, wrong = GeneratedAnswer("a", "a", "first"), GeneratedAnswer("a", "b")
    assert accuracy([right, wrong]) == {"exact_match": 0.5, "exact_match_first": 1.0}
    with pytest.raises(ValueError, match="`answers` is empty"):
        accuracy([])


def test_rows_without_an_answer(model, processor):
    for chat in ([user("Who?")], [assistant("He.")]):
        with pytest.raises(ValueError, match=r"films.json, record 3 has no question with an answer"):
            generate_answers(model, processor, [{"messages": chat, "source": "films.json, record 3"}])


SHARED = """
import json, sys
import torch
from accelerate import PartialState
from transformers import AutoModelForImageTextToText, AutoProcessor
from llama_vid.training.evaluation import generate_answers

state = PartialState(cpu=True)
assert state.num_processes == 2
path = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(path)
rows, calls, generate = json.loads(sys.argv[2]), [], model.generate
model.generate = lambda **inputs: calls.append(len(inputs["input_ids"])) or generate(**inputs)
answers = generate_answers(model, AutoProcessor.from_pretrained(path), rows, batch_size=1, max_new_tokens=6)
assert calls == [1, 1], calls  # two of three rows, the last one on both
print(json.dumps([answer.text for answer in answers]) + "\\n", end="", flush=True)
state.destroy_process_group()
"""


def test_processes_share_the_rows(model, processor, tmp_path):
    chats = [[user(f"Say {words}."), assistant("It.")] for words in ("something", "a word", "no word at all")]
    rows = [{"messages": chat} for chat in chats]
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    result = subprocess.run([*command, UNTRAINED, json.dumps(rows)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    expected = said(model, processor, rows)
    assert [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")] == [expected] * 2
