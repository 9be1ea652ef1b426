"""Trains under torchrun; run by `test_parallel.py`. Usage: distributed.py FOLDER RECIPE…"""

import glob
import json
import os
import sys
from pathlib import Path

from latentsb import parallel
from latentsb.errors import Error
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer, start_processes


def main():
    folder, recipes = Path(sys.argv[1]), sys.argv[2:]
    device = start_processes()
    assert parallel.world() == 2
    for path in recipes:
        recipe = Recipe.load(path)
        run = Run.create(recipe, folder / recipe.name)
        Trainer(run, build(recipe), device).fit()
        run.close()
    # A process that was started with something else must be noticed before the first step.
    recipe = Recipe.load(recipes[0], (f"train.lr={1 + parallel.rank()}e-3",))
    try:
        run = Run(folder / "unequal", recipe)
        Trainer(run, build(recipe), device).fit()
        told = "nothing"
    except Error as error:
        told = str(error)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(told))
    parallel.leave()
    # A thread of the group that is left would now and then abort the interpreter's end.
    left = [path for path in glob.glob("/proc/self/task/*/comm") if "gloo" in Path(path).read_text()]
    assert not left, left


if __name__ == "__main__":
    main()
