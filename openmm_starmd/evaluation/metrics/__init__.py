"""Metrics of trajectories: arrays in, arrays out."""
