"""
Context attention, folded against textbook, at the released sizes: time, and error against float64.

    python benchmarks/context_attention.py [--frames 16] [--repeats 20]
                                           [--output benchmarks/results/context_attention.md]

Both forms run in turn in one process, so that their ratio means something where absolute times do not.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from report import environment, write

from llama_vid.modeling import LlamaVidConfig
from llama_vid.modeling.modeling_llama_vid import LlamaVidContextAttention


def textbook(attention: LlamaVidContextAttention, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The paper's formula step by step: keys of every patch, M attention rows times the patches, then their mean."""
    keys = patches @ attention.key_proj.weight.T  # (frames, N, C)
    scores = attention.query_proj(queries) @ keys.transpose(1, 2) * attention.scaling  # (frames, M, N)
    rows = scores.softmax(-1) @ patches  # (frames, M, C)
    return attention.value_proj(rows.mean(1, keepdim=True))


def folded(attention: LlamaVidContextAttention, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The form that the model uses."""
    return attention(queries, patches)[0]


def run(form, attention, queries, patches) -> dict:
    """Times of a forward and a backward pass in milliseconds, the tokens, and the gradients of everything."""
    start = time.perf_counter()
    tokens = form(attention, queries, patches)
    middle = time.perf_counter()
    gradients = torch.autograd.grad(tokens.square().mean(), [queries, patches, *attention.parameters()])
    end = time.perf_counter()
    times = {"forward": 1e3 * (middle - start), "backward": 1e3 * (end - middle)}
    return {**times, "tokens": tokens.detach(), "gradients": gradients}


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over the norm of the float64 result."""
    return float((found.double() - exact).norm() / exact.norm())


def main(frames: int, repeats: int) -> str:
    """Run both forms in turn and return the table."""
    torch.manual_seed(0)
    config = LlamaVidConfig()  # 256 patches and CLS of width 1408, 32 queries of width 768, tokens of width 4096
    attention = LlamaVidContextAttention(config)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    queries = torch.randn(frames, config.num_query_tokens, config.qformer_config.hidden_size, requires_grad=True)
    patches = torch.randn(frames, config.patch_grid_side**2, config.vision_config.hidden_size, requires_grad=True)

    exact_attention = LlamaVidContextAttention(config).double()
    exact_attention.load_state_dict(attention.state_dict())
    exact = run(
        textbook,
        exact_attention,
        queries.detach().double().requires_grad_(),
        patches.detach().double().requires_grad_(),
    )
    forms = {"textbook": textbook, "folded": folded}
    runs = {name: [] for name in forms}
    for _ in range(repeats + 2):
        for name, form in forms.items():
            runs[name].append(run(form, attention, queries, patches))

    lines = [
        f"{frames} frames of {patches.shape[1]} x {patches.shape[2]}, {queries.shape[1]} queries, float32, "
        f"median of {repeats}.",
        "",
        "| form | forward, ms | backward, ms | error of tokens | largest error of a gradient |",
        "|---|---|---|---|---|",
    ]
    medians = {}
    for name, results in runs.items():
        timed = results[2:]  # the first two warm up
        forward, backward = (statistics.median(result[part] for result in timed) for part in ("forward", "backward"))
        medians[name] = (forward, backward)
        pairs = zip(results[-1]["gradients"], exact["gradients"], strict=True)
        gradient_error = max(relative_error(found, wanted) for found, wanted in pairs)
        error = relative_error(results[-1]["tokens"], exact["tokens"])
        lines.append(f"| {name} | {forward:.1f} | {backward:.1f} | {error:.1e} | {gradient_error:.1e} |")
    ratios = [medians["textbook"][i] / medians["folded"][i] for i in range(2)]
    lines += ["", f"The folded form is {ratios[0]:.1f} times as fast forward and {ratios[1]:.1f} times backward."]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    command = f"python benchmarks/context_attention.py --frames {arguments.frames} --repeats {arguments.repeats}"
    write("Context attention", command, main(arguments.frames, arguments.repeats), environment("cpu"), arguments.output)
