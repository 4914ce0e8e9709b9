"""Measuring: inputs, checks, clocks, and what a run leaves."""
