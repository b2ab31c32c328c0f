# Copyright 2026 The llama-vid authors. Licensed under the Apache License, Version 2.0.
"""
Converted checkpoints compute what the original code computed: every recorded tensor, logits, greedy answers, gradients.

Two small cases stand in `tests/golden`; more are read from `../shared/golden` where a checkout has that folder.
"""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_vid.conversion import convert_checkpoint
from llama_vid.modeling import LlamaVidForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"kept": ROOT / "tests" / "golden", "shared": ROOT.parent / "shared" / "golden"}
PLACEHOLDER = -200


def cases(wanted=lambda case: True) -> list:
    """The recorded cases whose case.json is as wanted."""
    found = [
        pytest.param(path.parent, id=f"{name}-{path.parent.name}")
        for name, folder in FOLDERS.items()
        for path in sorted(folder.glob("*/case.json"))
        if wanted(json.loads(path.read_text(encoding="utf-8")))
    ]
    if not FOLDERS["shared"].is_dir():
        reason = (
            f"{FOLDERS['shared']} is absent: all recorded cases are there, this checkout tests those of tests/golden"
        )
        found.append(pytest.param(None, id="shared", marks=pytest.mark.skip(reason=reason)))
    return found


def padding_takes_part(case: dict) -> bool:
    """A fault of the original: padding of shorter prompts enters the BERT decoder's mean over queries."""
    padded = any(0 in mask for sample in case["qformer"] for mask in sample["attention_mask"])
    return case["bert_type"].startswith("raw") and padded


def shows_an_image_to_several_prompts(case: dict) -> bool:
    return max(map(len, case["prompts"])) > 1 and max(case["image_counts"] or [1]) == 1


def copy_with_links_followed(source: Path, destination: Path):
    """Files that cases share are links; where a checkout cannot have links, they are small files that hold the path."""
    if source.is_file() and source.stat().st_size < 300:
        linked = source.read_text(encoding="utf-8").strip()
        if linked and "\n" not in linked and (source.parent / linked).exists():
            source = source.parent / linked
    if source.is_file():
        shutil.copyfile(source, destination)
    else:
        destination.mkdir()
        for child in source.iterdir():
            copy_with_links_followed(child, destination / child.name)


def head_counts(case: dict) -> dict:
    """What weights cannot tell; the recorded models have other head counts than the released ones."""
    vision = case["vision_config"]
    heads = vision["num_heads"] if vision["kind"] == "eva" else vision["num_attention_heads"]
    return {
        "vision_config": {"num_attention_heads": heads},
        "qformer_config": {"num_attention_heads": case["decoder_config"]["num_attention_heads"]},
    }


class Sample:
    """One sample of a case: its row of ids, its visual as an image or a video, and its prompts."""

    def __init__(self, case: dict, recorded: dict, index: int):
        mask = recorded.get("attention_mask")
        real = slice(None) if mask is None else mask[index].bool()
        self.ids = recorded["input_ids"][index][real]
        self.labels = recorded["labels"][index][real] if "labels" in recorded else None
        self.prompts = recorded[f"sample{index}.qformer_input_ids"]
        self.prompt_mask = recorded[f"sample{index}.qformer_attention_mask"]
        self.features = recorded.get(f"video_features.{index}")
        pixels = recorded.get(f"pixel_values.{index}")
        if pixels is None and self.features is None:
            pixels = recorded["pixel_values"][index]
        self.pixels = pixels if pixels is None or pixels.ndim == 4 else pixels[None]
        self.num_frames = len(self.pixels if self.features is None else self.features)
        self.is_video = self.features is not None or self.num_frames > 1
        self.has_visual = bool((self.ids == PLACEHOLDER).any())
        self.is_long = case["long_video_path"]

    def expanded(self, config) -> tuple[list[int], list[int]]:
        """Ids and labels with every placeholder written out."""
        token = config.video_token_id if self.is_video else config.image_token_id
        length = config.frame_seq_length if self.is_video else config.image_seq_length
        times = 1 if self.is_long else length * self.num_frames
        labels = torch.full_like(self.ids, -100) if self.labels is None else self.labels
        ids, targets = [], []
        for id_, label in zip(self.ids.tolist(), labels.tolist(), strict=True):
            ids += [token] * times if id_ == PLACEHOLDER else [id_]
            targets += [-100] * times if id_ == PLACEHOLDER else [label]
        return ids, targets


def build_inputs(samples: list[Sample], config) -> dict:
    """The model's inputs for a batch, right padded as the original's."""
    rows = [sample.expanded(config) for sample in samples]
    pad = {"batch_first": True, "padding_side": "right"}
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, _ in rows], padding_value=0, **pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(ids)).long() for ids, _ in rows], **pad)
    inputs = {"input_ids": ids, "attention_mask": mask}
    for is_video, suffix in ((False, ""), (True, "_videos")):
        chosen = [sample for sample in samples if sample.has_visual and sample.is_video == is_video]
        if not chosen:
            continue
        length = max(sample.prompts.shape[1] for sample in chosen)
        for name, values in (
            (f"qformer_input_ids{suffix}", [sample.prompts for sample in chosen]),
            (f"qformer_attention_mask{suffix}", [sample.prompt_mask for sample in chosen]),
        ):
            padded = [torch.nn.functional.pad(rows, (0, length - rows.shape[1])) for rows in values]
            inputs[name] = torch.cat(padded)
        indices = [index for index, sample in enumerate(chosen) for _ in sample.prompts]
        inputs["video_indices" if is_video else "image_indices"] = torch.tensor(indices)
        if is_video:
            inputs["video_num_frames"] = torch.tensor([sample.num_frames for sample in chosen])
        if chosen[0].features is not None:
            inputs["video_features"] = torch.cat([sample.features for sample in chosen])
        else:
            inputs[f"pixel_values{suffix}"] = torch.cat([sample.pixels for sample in chosen])
    return inputs


class Trace:
    """What passes through the modules of a model, by the names of the recorded tensors."""

    def __init__(self, model: LlamaVidForConditionalGeneration):
        self.calls: dict[str, list[torch.Tensor]] = defaultdict(list)
        parts = model.model
        queries = slice(None) if model.config.uses_bert_decoder else slice(model.config.num_query_tokens)
        hooks = {
            "vision_features": (parts.vision_tower, lambda inputs, output: output.last_hidden_state),
            "Q_t": (parts.qformer, lambda inputs, output: output.last_hidden_state[:, queries]),
            "text_q": (parts.context_attention.query_proj, lambda inputs, output: output),
            "E_t": (parts.context_attention.value_proj, lambda inputs, output: inputs[0]),
            "ctx_token": (parts.context_attention.value_proj, lambda inputs, output: output),
            "content_pooled": (parts.multi_modal_projector, lambda inputs, output: inputs[0]),
            "content_tokens": (parts.multi_modal_projector, lambda inputs, output: output),
        }
        for name, (module, select) in hooks.items():
            module.register_forward_hook(
                lambda module, inputs, output, name=name, select=select: self.calls[name].append(select(inputs, output))
            )

    def rows(self, name: str) -> torch.Tensor:
        return torch.cat(self.calls[name])


class Case:
    """A recorded case, its converted checkpoint, and one traced forward pass of each sample alone."""

    def __init__(self, folder: Path, work: Path):
        self.recorded = load_file(folder / "io.safetensors")
        self.case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        copy_with_links_followed(folder / "checkpoint", work / "checkpoint")
        base_model, vision_tower = work / "checkpoint" / "base_llm", folder.parent / "eva_vit_g.pth"
        overrides = head_counts(self.case)
        if self.case["long_video_path"]:
            overrides["video_qformer_uses_cls"] = False
        self.report = convert_checkpoint(
            work / "checkpoint",
            work / "converted",
            base_model=base_model if base_model.is_dir() else None,
            vision_tower=vision_tower if vision_tower.is_file() else None,
            config_overrides=overrides,
        )
        self.model = LlamaVidForConditionalGeneration.from_pretrained(work / "converted", dtype=torch.float32).eval()
        self.config = self.model.config
        self.samples = [Sample(self.case, self.recorded, i) for i in range(len(self.recorded["input_ids"]))]

    def forward(self, samples: list[Sample], **kwargs):
        return self.model(**build_inputs(samples, self.config), **kwargs)


@pytest.fixture(scope="module", params=cases())
def golden(request, tmp_path_factory):
    work = tmp_path_factory.mktemp(request.param.name)
    yield Case(request.param, work)
    shutil.rmtree(work)


def test_every_tensor_is_accounted_for(golden):
    report = golden.report
    key = "mm_projector_bin_keys" if "mm_projector_bin_keys" in golden.case else "state_dict_shapes"
    names = golden.case[key]
    assert set(names) <= set(report.used) | set(report.dropped)
    assert set(report.filled) == set(golden.model.state_dict())
    assert not set(report.used) & set(report.dropped)
    assert "model.vlm_att_key_projector.bias" in report.dropped


@torch.no_grad()
def test_intermediate_tensors(golden):
    start = 0
    for index, sample in enumerate(golden.samples):
        frames = slice(start, start + sample.num_frames)
        start += sample.num_frames
        if not sample.has_visual:
            continue
        trace = Trace(golden.model)
        outputs = golden.forward([sample])
        if "vision_features" in golden.recorded:
            expected = golden.recorded["vision_features"][frames]
            found = trace.rows("vision_features")[:, -expected.shape[1] :]  # CLIP was recorded without CLS
            torch.testing.assert_close(found, expected, rtol=0, atol=5e-5, msg=lambda text: f"vision_features: {text}")
        # Rows of recorded tensors run prompt by prompt; the original is right about prompts without padding.
        exact = sample.prompt_mask.bool().all(dim=1).repeat_interleave(sample.num_frames)
        exact |= not golden.config.uses_bert_decoder
        for name in ("Q_t", "text_q", "E_t", "ctx_token", "content_pooled", "content_tokens"):
            found, expected = trace.rows(name)[exact], golden.recorded[f"sample{index}.{name}"][exact]
            torch.testing.assert_close(
                found, expected, rtol=0, atol=5e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
        tokens = outputs.video_hidden_states if sample.is_video else outputs.image_hidden_states
        expected = golden.recorded[f"sample{index}.visual_tokens"]
        found, exact = tokens.reshape(expected.shape), exact[:: sample.num_frames]
        torch.testing.assert_close(found[exact], expected[exact], rtol=0, atol=5e-5)


@torch.no_grad()
@pytest.mark.parametrize("golden", cases(lambda case: not padding_takes_part(case)), indirect=True)
def test_logits(golden):
    expected = golden.recorded["logits"]
    inputs = build_inputs(golden.samples, golden.config)
    real = inputs["attention_mask"].bool()
    if "expanded_attention_mask" in golden.recorded:  # may be longer: the original expands a batch with its padding
        assert torch.equal(golden.recorded["expanded_attention_mask"].bool().nonzero(), real.nonzero())
    found = golden.model(**inputs).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found[real], expected[:, : found.shape[1]][real], rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("golden", cases(lambda case: not padding_takes_part(case)), indirect=True)
def test_greedy_answers(golden):
    golden.model.generation_config.eos_token_id = None  # the recording went on after the end of the sequence
    for index, sample in enumerate(golden.samples):
        inputs = build_inputs([sample], golden.config)
        expected = golden.recorded["generated_ids"][index]
        ids = golden.model.generate(**inputs, max_new_tokens=len(expected), do_sample=False)
        assert ids[0, inputs["input_ids"].shape[1] :].tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("golden", cases(shows_an_image_to_several_prompts), indirect=True)
def test_each_prompt_equals_itself_alone(golden):
    for sample in golden.samples:
        together = golden.model.get_image_features(
            sample.pixels, sample.prompts, sample.prompt_mask, image_indices=torch.zeros(len(sample.prompts)).long()
        )
        for row, (ids, mask) in enumerate(zip(sample.prompts, sample.prompt_mask.bool(), strict=True)):
            alone = golden.model.get_image_features(sample.pixels, ids[mask][None])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=5e-5)


@pytest.mark.parametrize("golden", cases(lambda case: "loss" in case), indirect=True)
def test_loss_and_gradients(golden):
    golden.model.zero_grad()
    golden.model.model.vision_tower.requires_grad_(False)
    inputs = build_inputs(golden.samples, golden.config)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, sample in enumerate(golden.samples):
        targets = sample.expanded(golden.config)[1]
        labels[row, : len(targets)] = torch.tensor(targets)
    recorded = golden.recorded["expanded_labels"]
    assert torch.equal(recorded[:, : labels.shape[1]], labels)
    assert bool((recorded[:, labels.shape[1] :] == -100).all())
    vocab_size = golden.recorded["logits"].shape[-1]
    loss = golden.model(**inputs, labels=labels).loss
    torch.testing.assert_close(loss[None], golden.recorded["loss"], rtol=0, atol=1e-5)
    loss.backward()

    parameters = dict(golden.model.named_parameters())
    zero = golden.case["grad_zero_analytically"]
    checked = set()
    for name, norm in golden.case["grad_norms"].items():
        if name in golden.report.dropped:
            continue
        gradient = parameters[golden.report.used[name]].grad
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            gradient = gradient[:vocab_size]
        if name in zero:
            assert gradient is None or gradient.abs().max() <= 1e-5, name
            continue
        assert abs(gradient.norm().item() - norm) <= 1e-4 * norm, name
        if f"grad.{name}" in golden.recorded:
            expected = golden.recorded[f"grad.{name}"]
            assert (gradient.reshape(expected.shape) - expected).norm() <= 1e-4 * norm, name
        checked.add(name)
    assert len(checked) > 80
