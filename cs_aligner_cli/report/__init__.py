"""The gap report as a page, pictures and files."""

# The page.
REPORT = "report.html"
# What sorts the tables of every page of csalign's.
SORT_SCRIPT = "sort_tables.js"
