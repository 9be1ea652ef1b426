"""Methods beside exact answers: every figure stands with its floors, its seeds and its standard error.

A bench is a family of problems whose Schrödinger bridge is known, and a table of methods, each a fragment of a recipe.
An arm (method, problem, seed) is trained and stored like any run, so an interrupted bench goes on where it stopped.
"""
