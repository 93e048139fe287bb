"""Several processes against one on the same global batch: losses, gradients, weights, stores, memory.

Every number of ranks is one torchrun of this file; ratios and differences are to the run with one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from cs_aligner_cli.common.console import Console, table
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.row_exchange import RowExchange
from cs_aligner_cli.objectives import Clouds, Logits, Pairs, Term, evaluate_terms, on_sums
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.objectives.divergences import gram_divergence
from cs_aligner_cli.recipe.distributed import Distributed
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.distributed import Ranks, together
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.towers.towers import Towers, plan_towers
from cs_aligner_cli.training.scheduled_objective import ObjectiveState
from cs_aligner_cli.training.step import Batch, Stepper

# On one machine: the rendezvous takes a free port, and the host's name need not lead to an address.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
TORCHRUN += ["--local-addr", "localhost"]
STEPS = 50
ROWS, DIMS = 256, {"image": 96, "text": 64}
_DROPOUT = {"adapter": {"kind": "residual_mlp", "hidden_dim": 128, "dropout": 0.1}}
# What is trained; the last one has more parts than ranks, so that even its dropout is that of one process.
CASES: dict[str, dict[str, Any]] = {
    "infonce + cs": {},
    "siglip + energy": {"objective": {"pairwise": {"kind": "siglip"}, "divergence": {"kind": "energy"}}},
    "infonce + cs, median, relative": {
        "objective": {"divergence": {"kind": "cs", "bandwidth": "median", "weight": {"kind": "relative", "ratio": 0.2}}}
    },
    "micro-batches, dropout": {"micro_batch_size": 32, "image": _DROPOUT, "text": _DROPOUT},
}
_ADAPTER = {"adapter": {"kind": "residual_mlp", "hidden_dim": 128}}
# The memory of a step: wide adapters on a large batch.
WIDE_ROWS, WIDE_DIM, WIDE_HIDDEN = 8192, 512, 4096
OBJECTIVE_PAIRS = 960  # of the objective alone
_CS = gram_divergence("cs", (0.7071,))


def train_spec(case: dict[str, Any], rows: int = ROWS) -> Train:
    """The training section of one case."""
    settings = {"batch_size": rows, "embed_dim": 48, "grad_clip": None, "image": _ADAPTER, "text": _ADAPTER, **case}
    return Train.model_validate(settings)


def features(step: int, rows: int, dims: dict[str, int]) -> dict[str, Tensor]:
    """Inputs (rows, dim) of both towers at a step: one latent factor seen by both, with noise."""
    generator = torch.Generator().manual_seed(step)
    maps = torch.Generator().manual_seed(1_000_003)
    latent = torch.randn(rows, 16, generator=generator)
    return {
        m: latent @ torch.randn(16, dim, generator=maps) + 0.5 * torch.randn(rows, dim, generator=generator)
        for m, dim in dims.items()
    }


def make_stepper(spec: Train, dims: dict[str, int], ranks: Ranks) -> tuple[Towers, Stepper]:
    """Towers of adapters, equal on all ranks, and what trains them."""
    torch.manual_seed(0)
    towers = Towers(plan_towers(spec, dims), {}, logit_scale=14.0)
    return towers, Stepper(spec, towers, STEPS, 0, torch.device("cpu"), ranks=ranks)


def step(stepper: Stepper, spec: Train, ranks: Ranks, number: int, rows: int, dims: dict[str, int]) -> float:
    """One step on this rank's share of the batch; the loss."""
    share = ranks.share_of_batch(rows, spec.micro_batch_size)
    inputs = {m: values[share.rows] for m, values in features(number, rows, dims).items()}
    batch = Batch(inputs, dict.fromkeys(inputs, rows), {IMAGE_TEXT: Pairs(groups=torch.arange(rows))})
    return float(stepper.step(number, batch, ObjectiveState())[0]["loss"])


def trained(case: dict[str, Any], ranks: Ranks, steps: int = STEPS) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of all steps, and the first step's gradients and the last step's weights by name."""
    spec = train_spec(case)
    towers, stepper = make_stepper(spec, DIMS, ranks)
    losses, tensors = [], {}
    for number in range(steps):
        losses.append(step(stepper, spec, ranks, number, ROWS, DIMS))
        if number == 0:
            tensors = {f"grad.{n}": p.grad.clone() for n, p in towers.named_parameters() if p.grad is not None}
    return losses, {**tensors, **{f"weight.{n}": p.detach() for n, p in towers.named_parameters()}}


def memory_and_time(ranks: Ranks) -> list[tuple[float, float]]:
    """For every rank: the peak memory of a step above what the process held before (MB), and the seconds it took."""
    adapter = {"adapter": {"kind": "residual_mlp", "hidden_dim": WIDE_HIDDEN}}
    spec = train_spec({"image": adapter, "text": adapter, "embed_dim": WIDE_DIM}, WIDE_ROWS)
    dims = dict.fromkeys(MODALITIES, WIDE_DIM)
    _, stepper = make_stepper(spec, dims, ranks)
    step(stepper, spec, ranks, 0, WIDE_ROWS, dims)  # the optimizer's state is there from now on
    held, seconds = 0, 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    held = _status("VmRSS")
    for number in (1, 2):
        started = time.perf_counter()
        step(stepper, spec, ranks, number, WIDE_ROWS, dims)
        seconds = time.perf_counter() - started
    return ranks.all_gather(((_status("VmHWM") - held) / 1e3, seconds))


def objective_peak(exchange: RowExchange, pairs: int) -> float:
    """What InfoNCE + CS of rows of 16,384 dimensions adds to this process's memory at most (MB), rows and gradients
    included: a batch that is large in bytes and small in pairs, so that rows are what a step holds."""
    terms = [
        Term("infonce", 1.0, on_sums("infonce", [IMAGE_TEXT]), sums="infonce"),
        Term("divergence", 1.0, on_sums(_CS, [IMAGE_TEXT]), sums=_CS),
    ]
    logits = Logits(torch.tensor(14.3), torch.tensor(0.0))

    def evaluate(size: int, dims: int) -> None:
        rows = {m: torch.nn.functional.normalize(torch.randn(size, dims), dim=1) for m in IMAGE_TEXT}
        counts = dict.fromkeys(rows, [size] * exchange.size)
        clouds = Clouds(rows, {IMAGE_TEXT: Pairs()}, exchange=exchange, counts=counts)
        evaluate_terms(terms, clouds, logits, separate=False)

    torch.manual_seed(exchange.rank)
    evaluate(8, 6)  # what libraries keep is there from now on
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    evaluate(pairs // exchange.size, 16384)
    return (_status("VmHWM") - before) / 1e3


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def write_data(folder: Path) -> None:
    """Photos, captions that repeat from shard to shard, and the recipe of a small CLIP over them."""
    images, captions = 90, ["image,caption,split"]
    (folder / "images").mkdir()
    for i in range(images):
        split = "train" if i < 60 else "test"
        Image.new("RGB", (32, 32), (2 * i, 255 - 2 * i, 7 * i % 256)).save(folder / "images" / f"{i:03d}.png")
        captions += [f"{i:03d}.png,a picture of kind {(i * i + k) % 23},{split}" for k in range(2)]
    (folder / "captions.csv").write_text("\n".join(captions) + "\n")
    (folder / "few.yaml").write_text(yaml.safe_dump(MANIFEST))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def embedded(folder: Path, ranks: Ranks) -> dict[str, str]:
    """The digest of every file of the stores that the recipe beside ``folder`` gives."""
    recipe = load_recipe(str(folder.parent / "recipe.yaml"), [f"run_dir={folder / 'run'}"])
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, Console(quiet=True), ranks=ranks)
    store = folder / "run" / "embeddings" / "frozen"
    apart = ("stage.json", ".lock", ".lock-holder")
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name not in apart]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


MANIFEST = {"name": "few", "kind": "table", "root": ".", "table": "captions.csv", "image_dir": "images"}
RECIPE = {
    "name": "ranks",
    "data": {"manifest": "few.yaml"},
    "eval_retrieval": {"split": "test"},
    "encoders": {
        "image": {
            "kind": "open_clip",
            "random_init": True,
            "config": {
                "embed_dim": 32,
                "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
                "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 2},
            },
        }
    },
    "embed": {"shard_rows": 20, "batch_size": 8},
}


def worker(folder: Path, steps: int, with_memory: bool) -> None:
    """What one rank does; rank 0 leaves the results in ``folder``."""
    with together(Distributed()) as ranks:
        results: dict[str, Any] = {"losses": {}}
        # First, as memory that is let go of later would be taken again without being counted.
        results["objective_mb"] = ranks.all_gather(objective_peak(ranks, OBJECTIVE_PAIRS)) if with_memory else []
        tensors: dict[str, Tensor] = {}
        for name, case in CASES.items():
            results["losses"][name], found = trained(case, ranks, steps)
            tensors |= {f"{name}/{key}": value for key, value in found.items()}
        results["store"] = embedded(folder, ranks)
        results["memory"] = memory_and_time(ranks) if with_memory else []
        if ranks.main:
            save_file(tensors, folder / "tensors.safetensors")
            (folder / "results.json").write_text(json.dumps(results))


def launch(folder: Path, ranks: int, with_memory: bool = True, steps: int = STEPS) -> dict[str, Any]:
    """The results of some number of ranks, each with one thread, so that all numbers are of equal arithmetic."""
    out = folder / str(ranks)
    out.mkdir()
    options = ["--worker", str(out), "--steps", str(steps), *(["--memory"] if with_memory else [])]
    command = [*TORCHRUN, "--nproc-per-node", str(ranks), __file__, *options]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=sys.stderr)
    return {**json.loads((out / "results.json").read_text()), "tensors": load_file(out / "tensors.safetensors")}


def differences(one: dict[str, Any], many: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For every case the largest difference of first losses (relative), gradients (to the largest), and weights."""
    rows = {}
    for case in CASES:
        parts = {}
        for kind in ("grad", "weight"):
            keys = [key for key in one["tensors"] if key.startswith(f"{case}/{kind}.")]
            apart = max(float((one["tensors"][key] - many["tensors"][key]).abs().max()) for key in keys)
            largest = max(float(one["tensors"][key].abs().max()) for key in keys)
            parts[kind] = apart / (largest if kind == "grad" else 1.0)
        first, other = one["losses"][case][0], many["losses"][case][0]
        last = abs(one["losses"][case][-1] - many["losses"][case][-1]) / abs(one["losses"][case][-1])
        rows[case] = {"loss": abs(first - other) / abs(first), "last_loss": last, **parts}
    return rows


def compare(counts: list[int], with_memory: bool) -> dict[str, Any]:
    """Everything measured, by number of ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        found = {ranks: launch(folder, ranks, with_memory) for ranks in (1, *counts)}
    one = found[1]
    return {
        "differences": {ranks: differences(one, found[ranks]) for ranks in counts},
        "stores_identical": {ranks: found[ranks]["store"] == one["store"] for ranks in counts},
        "memory_mb": {ranks: [round(mb) for mb, _ in each["memory"]] for ranks, each in found.items()},
        "objective_mb": {ranks: [round(mb) for mb in each["objective_mb"]] for ranks, each in found.items()},
        "seconds": {ranks: max((s for _, s in each["memory"]), default=0.0) for ranks, each in found.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument("--no-memory", dest="memory", action="store_false", default=None)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.steps, bool(arguments.memory))
        return
    measured = compare(arguments.ranks, arguments.memory is not False)
    rows = [
        (f"{case}, {ranks} ranks", *(f"{apart[k]:.1e}" for k in ("loss", "grad", "weight", "last_loss")))
        for ranks, cases in measured["differences"].items()
        for case, apart in cases.items()
    ]
    columns = ["against one process", "loss", "gradient", f"weights after {STEPS}", "last loss"]
    tables = [table(f"largest differences, batch {ROWS}", columns, rows)]
    if measured["memory_mb"][1]:
        memory = [
            (ranks, " ".join(map(str, mb)), f"{max(mb) / measured['memory_mb'][1][0]:.2f}", f"{s:.2f}")
            for (ranks, mb), s in zip(measured["memory_mb"].items(), measured["seconds"].values(), strict=True)
        ]
        title = f"a step on {WIDE_ROWS} pairs, adapters {WIDE_DIM}-{WIDE_HIDDEN}-{WIDE_DIM}, one thread per rank"
        tables.append(table(title, ["ranks", "peak MB of each", "of one", "seconds"], memory))
        alone = [
            (ranks, " ".join(map(str, mb)), f"{max(mb) / measured['objective_mb'][1][0]:.2f}")
            for ranks, mb in measured["objective_mb"].items()
        ]
        title = f"the objective alone on {OBJECTIVE_PAIRS} pairs of 16,384 dimensions"
        tables.append(table(title, ["ranks", "peak MB of each", "of one"], alone))
    same = [(ranks, "yes" if equal else "NO") for ranks, equal in measured["stores_identical"].items()]
    tables.append(table("embedding stores", ["ranks", "identical to one process"], same))
    Console(arguments.json).result(measured, tables)


if __name__ == "__main__":
    main()
