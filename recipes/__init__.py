"""Recipes that ship with latentsb: one YAML file per experiment."""
