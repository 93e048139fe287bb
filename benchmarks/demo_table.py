"""What the docs show of the demo: python benchmarks/demo_table.py FOLDER runs it, and writes docs/results/demo.json.

python benchmarks/results.py tables puts that there. With runs of the demo in FOLDER its end is taken as it is,
and the time that it took is then that of the file before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_FRESH = "nothing to do, its inputs have not changed"
_WIDTH = 80


def parsed(stdout: str, stderr: str) -> dict[str, Any]:
    """The lines of the table on stdout, and the sentences behind the path of the report on stderr."""
    said = stderr.splitlines()
    end = next(number for number, line in enumerate(said) if line.startswith("report: "))
    return {"printed": stdout.splitlines(), "said": said[end + 1 :]}


def demo(content: dict[str, Any]) -> str:
    """The demo's table and sentences as a block of a page, and what made them."""
    said = [line for sentence in content["said"] for line in textwrap.wrap(sentence, _WIDTH)]
    block = textwrap.indent("\n".join([*content["printed"], "", *said]), "    ")
    minutes, seconds = divmod(round(content["cpu_seconds"]), 60)
    made = f"`{content['command']}`, commit {content['commit']}, {content['date']}, {content['device']}"
    return f"\n{block}\n\n{minutes} min {seconds} s of CPU on one thread; {made}."


def main() -> None:
    """Run the demo and write what it says."""
    import results

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where it runs")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    command, screen = [sys.executable, "-m", "cs_aligner_cli", "demo"], {**os.environ, "COLUMNS": str(_WIDTH)}
    ended = subprocess.run(command, cwd=folder, env=screen, capture_output=True, text=True, check=True)
    times, path = os.times(), results.RESULTS / "demo.json"
    seconds = round(times.children_user + times.children_system, 1)
    if _FRESH in ended.stderr:
        seconds = json.loads(path.read_text())["cpu_seconds"]
    content = {"name": "demo", "command": "python benchmarks/demo_table.py FOLDER", **results._where(), "seeds": [0]}
    content |= {"cpu_seconds": seconds, **parsed(ended.stdout, ended.stderr)}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
