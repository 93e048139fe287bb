"""Models as other programs save them load as in their own libraries, or are refused with the message on the page."""

from __future__ import annotations

import foreign_files
import pytest


@pytest.mark.filterwarnings("ignore")  # the libraries' own, of small and incomplete models
def test_the_table_of_foreign_files_is_what_happens() -> None:
    assert foreign_files.table() == foreign_files.on_page(), "python tests/foreign_files.py writes the page anew"
