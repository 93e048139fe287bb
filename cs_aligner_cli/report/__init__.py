"""The gap report as a page, pictures and files."""

# The page.
REPORT = "report.html"
