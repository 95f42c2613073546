"""What a user sees of a comparison: tables, figures and the page."""
