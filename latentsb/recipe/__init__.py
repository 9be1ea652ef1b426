"""Recipes: YAML to typed objects, every problem at once.

Reading, merging and the fixed sections work without torch; binding a part imports its contract and that part alone.
"""

from latentsb.recipe.document import Recipe
from latentsb.recipe.part import Factory, FromRun, Part
from latentsb.recipe.sections import Ema, Preview, Stage, TrainSettings

__all__ = ["Ema", "Factory", "FromRun", "Part", "Preview", "Recipe", "Stage", "TrainSettings"]
