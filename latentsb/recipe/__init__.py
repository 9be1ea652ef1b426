"""Recipes: YAML to typed objects, every problem at once."""
