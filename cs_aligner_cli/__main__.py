"""``python -m cs_aligner_cli`` is csalign: how torchrun starts it."""

from __future__ import annotations

from cs_aligner_cli.cli.main import main

if __name__ == "__main__":
    main()
