"""Scores of a generated trajectory beside molecular dynamics and null models, and what they mean."""
