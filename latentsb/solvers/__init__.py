"""Solvers, grids of times, and starts."""
