"""InfoNCE + CS, forward and backward, over tiles: time, memory and error beside its peers, in one run.

python benchmarks/objectives.py [--rows 8192] [--repeats 5] [--growth docs/growth.png]

Prints the machine's matrix-product rate; then, at --rows rows of 512, ours against the direct torch expression (three
N x N matrices and autograd), open_clip's ClipLoss alone, and our MMD against geomloss's; ours with four times the rows;
and a training step's price at usual batch sizes. --growth also measures 1k to 32k rows, prints a table and draws it.
Peak memory is what a call adds to the process (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from open_clip import ClipLoss
from torch import Tensor

from cs_aligner_cli.objectives import (
    Clouds,
    Logits,
    Term,
    cs_divergence,
    evaluate_terms,
    infonce,
    mmd,
    on_clouds,
    on_pairs,
)
from cs_aligner_cli.objectives.divergences import gram_divergence

DIM, SIGMA, SCALE = 512, 0.7071, 14.3
Call = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def direct(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The objective as one would write it: whole matrices, autograd."""
    x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
    labels = torch.arange(len(x))
    logits = SCALE * x @ y.T

    def log_sum_kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a.square().sum(1).unsqueeze(1) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
        return torch.logsumexp((squares / (-2 * SIGMA**2)).flatten(), 0)

    cross_entropy = torch.nn.functional.cross_entropy
    ranking = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    loss = ranking + log_sum_kernel(x, x) + log_sum_kernel(y, y) - 2 * log_sum_kernel(x, y)
    return loss.detach(), torch.cat(torch.autograd.grad(loss, (x, y)))


def tiled(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The same by csalign."""
    terms = [
        Term("infonce", 1.0, on_pairs(lambda i, t, logits, groups: infonce(i, t, logits.scale)), sums="infonce"),
        Term("cs", 1.0, on_clouds(lambda i, t: cs_divergence(i, t, SIGMA)), sums=gram_divergence("cs", (SIGMA,))),
    ]
    logits = Logits(torch.tensor(SCALE), torch.tensor(0.0))
    found = evaluate_terms(terms, Clouds.of_pairs(image, text), logits, separate=False)
    return found.total, torch.cat([*found.grads.values()])


def clip_loss(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """open_clip's loss alone."""
    x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
    loss = ClipLoss()(x, y, torch.tensor(SCALE))
    return loss.detach(), torch.cat(torch.autograd.grad(loss, (x, y)))


def our_mmd(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Half of MMD^2, as geomloss counts it."""
    x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
    loss = mmd(x, y, SIGMA) / 2
    return loss.detach(), torch.cat(torch.autograd.grad(loss, (x, y)))


def geomloss_mmd(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """geomloss's Gaussian kernel norm."""
    from geomloss import SamplesLoss

    x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
    loss = SamplesLoss("gaussian", blur=SIGMA, backend="tensorized")(x, y)
    return loss.detach(), torch.cat(torch.autograd.grad(loss, (x, y)))


def unit_rows(rows: int) -> tuple[Tensor, Tensor]:
    """Two clouds with a gap, float32."""
    torch.manual_seed(0)
    offset = torch.nn.functional.normalize(torch.randn(DIM), dim=0) * DIM**0.5 / 3
    clouds = [torch.nn.functional.normalize(torch.randn(rows, DIM) + sign * offset, dim=1) for sign in (1, -1)]
    return clouds[0], clouds[1]


def seconds(call: Call, image: Tensor, text: Tensor, repeats: int) -> float:
    """The shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call(image, text)
        times.append(time.perf_counter() - start)
    return min(times)


def peak_megabytes(call: Call, image: Tensor, text: Tensor) -> float:
    """What one call adds to the memory of this process at most."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    call(image, text)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def product_rate(repeats: int) -> float:
    """Floating-point operations a second of a large square product, result buffer reused."""
    a, b, out = (torch.randn(4096, 4096) for _ in range(3))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(times)


def compare(rows: int, repeats: int) -> None:
    """Ours against its peers at one size."""
    image, text = unit_rows(rows)
    reference, reference_grad = direct(image.double(), text.double())
    memory = peak_megabytes(tiled, image, text)
    # By turns, so that other work on the machine slows both alike.
    turns = [(product_rate(1), seconds(tiled, image, text, 1)) for _ in range(2 * repeats)]
    rate, ours = max(rate for rate, _ in turns), min(took for _, took in turns)
    print(f"{torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in float32 products; N = {rows}, d = {DIM}")
    value, grad = tiled(image, text)
    share = 12 * rows**2 * DIM / ours / rate
    value_error = abs(float(value) - float(reference)) / float(reference)
    grad_error = float((grad - reference_grad).norm() / reference_grad.norm())
    print(f"InfoNCE + CS over tiles   {ours:7.2f} s {memory:7.0f} MB, {share:.0%} of the rate on 12 N^2 d operations,")
    print(
        f"                          relative error of value {value_error:.1e}, of gradient {grad_error:.1e} (float64)"
    )
    for name, call, mine in (
        ("direct torch expression", direct, (ours, memory)),
        ("open_clip ClipLoss alone", clip_loss, (ours, memory)),
        ("geomloss Gaussian MMD", geomloss_mmd, None),
    ):
        theirs = peak_megabytes(call, image, text), seconds(call, image, text, max(1, repeats // 2))
        if mine is None:
            mine = seconds(our_mmd, image, text, repeats), peak_megabytes(our_mmd, image, text)
            name += f" (ours {mine[0]:.2f} s, {mine[1]:.0f} MB)"
        ratios = f"ours takes {mine[0] / theirs[1]:.2f} of its time, {mine[1] / theirs[0]:.2f} of its memory"
        print(f"{name:25s} {theirs[1]:7.2f} s {theirs[0]:7.0f} MB, {ratios}")
    image, text = unit_rows(4 * rows)
    memory = peak_megabytes(tiled, image, text)
    print(f"ours at N = {4 * rows}         {seconds(tiled, image, text, 1):7.2f} s {memory:7.0f} MB")


def training_step(repeats: int) -> None:
    """What adding CS costs at usual batch sizes."""
    for rows in (256, 512, 1024, 2048):
        image, text = unit_rows(rows)
        alone, both = (seconds(call, image, text, 4 * repeats) for call in (clip_loss, tiled))
        print(f"batch {rows:5d}: ClipLoss {alone * 1e3:6.1f} ms, InfoNCE + CS {both * 1e3:6.1f} ms, {both / alone:.1f}")


def growth(picture: Path, repeats: int) -> None:
    """Time and memory from 1k to 32k rows, as a Markdown table and a picture."""
    import matplotlib.pyplot as plt

    found: dict[str, list[tuple[int, float, float]]] = {"direct": [], "over tiles": []}
    for rows in (1024, 2048, 4096, 8192, 16384, 32768):
        image, text = unit_rows(rows)
        for name, call in (("direct", direct), ("over tiles", tiled)):
            if name == "over tiles" or rows <= 8192:
                memory = peak_megabytes(call, image, text)
                found[name].append((rows, seconds(call, image, text, repeats if rows < 8192 else 1), memory))
    print("| N | over tiles | | direct | |\n|---|---|---|---|---|")
    absent = "too large | "
    for i, (rows, took, memory) in enumerate(found["over tiles"]):
        theirs = found["direct"][i : i + 1]
        cells = [f"{t:.3g} s | {m:,.0f} MB" for _, t, m in ((rows, took, memory), *theirs)]
        print(f"| {rows:,} | {' | '.join(cells if theirs else [*cells, absent])} |")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for ax, index, label in ((axes[0], 1, "seconds"), (axes[1], 2, "MB above the inputs")):
        for (name, points), style in zip(found.items(), ("s--", "o-"), strict=True):
            ax.plot([p[0] for p in points], [p[index] for p in points], style, label=name)
        ax.set(xscale="log", yscale="log", xlabel="rows of each cloud", ylabel=label)
        ax.set_xticks([p[0] for p in found["over tiles"]], ["1k", "2k", "4k", "8k", "16k", "32k"])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(picture, dpi=130)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", type=Path, help="picture to draw")
    options = parser.parse_args()
    compare(options.rows, options.repeats)
    training_step(options.repeats)
    if options.growth:
        growth(options.growth, options.repeats)


if __name__ == "__main__":
    main()
