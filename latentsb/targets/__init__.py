"""Targets: densities that are known up to a constant, and of which there are no samples."""
