"""Trains under torchrun; run by `test_parallel.py`. Usage: distributed.py FOLDER RECIPE…"""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState

from latentsb import parallel
from latentsb.errors import Error
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer


def main():
    folder, recipes = Path(sys.argv[1]), sys.argv[2:]
    PartialState(cpu=True)
    assert parallel.world() == 2
    for path in recipes:
        recipe = Recipe.load(path)
        run = Run.create(recipe, folder / recipe.name)
        Trainer(run, build(recipe)).fit()
        run.close()
    # A process that was started with something else must be noticed before the first step.
    recipe = Recipe.load(recipes[0], (f"train.lr={1 + parallel.rank()}e-3",))
    try:
        run = Run(folder / "unequal", recipe)
        Trainer(run, build(recipe)).fit()
        told = "nothing"
    except Error as error:
        told = str(error)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(told))
    parallel.leave()


if __name__ == "__main__":
    main()
