"""Process mathematics: references, marginals, conversions, preconditioning, times, paths, couplings."""
