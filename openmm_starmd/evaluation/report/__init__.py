"""Report of a comparison: tables, figures and the page."""
