"""What README shows of the demo: python benchmarks/demo_table.py FOLDER runs it, and writes docs/results/demo.json.

python benchmarks/results.py tables puts that into README. With runs of the demo in FOLDER its end is taken as it is,
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
_WIDTH = 116


def parsed(stdout: str, stderr: str) -> dict[str, Any]:
    """The table on stdout, its title and rows of cells, and the sentences behind the path of the report on stderr."""
    title, *lines = stdout.splitlines()
    rows = [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines if line[:1] in "┃│"
    ]
    said = stderr.splitlines()
    end = next(number for number, line in enumerate(said) if line.startswith("report: "))
    return {"title": title, "table": rows, "said": said[end + 1 :]}


def demo(content: dict[str, Any]) -> str:
    """The demo's table and sentences as a block of README, and what made them."""
    rows = content["table"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    said = [line for sentence in content["said"] for line in textwrap.wrap(sentence, _WIDTH)]
    block = textwrap.indent("\n".join([content["title"], *lines, "", *said]), "    ")
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
    ended = subprocess.run(
        [sys.executable, "-m", "cs_aligner_cli", "demo"], cwd=folder, capture_output=True, text=True, check=True
    )
    times, path = os.times(), results.RESULTS / "demo.json"
    seconds = round(times.children_user + times.children_system, 1)
    if _FRESH in ended.stderr:
        seconds = json.loads(path.read_text())["cpu_seconds"]
    content = {"name": "demo", "command": "python benchmarks/demo_table.py FOLDER", **results._where(), "seeds": [0]}
    content |= {"cpu_seconds": seconds, **parsed(ended.stdout, ended.stderr)}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
