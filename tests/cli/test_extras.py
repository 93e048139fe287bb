"""What csalign does without the packages that only some of it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from cs_aligner_cli.common.extras import EXTRAS

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
# Python itself refuses to import what stands as None among the modules.
LIGHT = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from cs_aligner_cli.cli.main import app
codes = []
for command in json.loads(sys.argv[2]):
    try:
        app(command)
    except SystemExit as ended:
        codes.append(ended.code)
print("compiler:", "imported" if "torch._dynamo" in sys.modules else "not imported", file=sys.stderr)
print(codes)
"""


def test_every_package_has_its_extra() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)
    core = " ".join(tomllib.loads(PROJECT.read_text())["project"]["dependencies"])
    assert not [package for package in EXTRAS if package in core.replace("-", "_")]


def test_a_light_install_trains_on_features_and_names_the_extra_of_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "pairs.yaml").write_text(
        yaml.safe_dump(
            {"name": "pairs", "kind": "latent", "images": {"train": 64, "test": 20}, "dim": 8, "latent_dim": 4}
        )
    )
    features = {"image": {"kind": "features"}, "text": {"kind": "features"}}
    recipe = {"name": "light", "run_dir": "run", "data": {"manifest": "pairs.yaml"}, "encoders": features}
    recipe |= {"train": {"epochs": 1, "batch_size": 16}, "eval_retrieval": {"split": "test"}}
    (tmp_path / "light.yaml").write_text(yaml.safe_dump(recipe))
    stages = [[stage, "light.yaml", "-q"] for stage in ("prepare", "embed", "train", "embed", "eval-retrieval")]
    clip = "--set=encoders.image={kind: open_clip, model: ViT-B-32, random_init: true}"
    tower = ["prepare", "light.yaml", clip, "--set=run_dir=other"]
    commands = [*stages, ["gap-report", "light.yaml"], ["run", "light.yaml"], tower]
    arguments = [json.dumps([*EXTRAS]), json.dumps(commands)]
    ended = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.stdout.splitlines()[-1:] == [str([0, 0, 0, 0, 0, 2, 2, 2])], ended.stderr
    assert ended.stderr.count("gap-report needs matplotlib, which is not installed") == 2
    assert "pip install 'cs-aligner-cli[report]'" in ended.stderr
    assert "encoders.image needs open_clip, which is not installed" in ended.stderr
    assert not (tmp_path / "other").exists()
    assert "compiler: not imported" in ended.stderr
