"""Broken, hostile and odd inputs, made by code: each is read rightly or refused with its place and the reason.

    python benchmarks/broken_inputs.py           # a table of totals; every failure is named, and then the exit is 1
    python benchmarks/broken_inputs.py --all     # and what is told of each

Nothing may be executed (a canary would appear), nothing may take more than a bounded amount of memory or time, and a
file that is cut off must never be taken for a whole one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator

from _broken import Case, Outcome, judged
from _broken_archives import cuts, hostile
from _broken_images import bombs, cut, something_else
from _broken_odd import folders, modes, shapes, turned
from _broken_sets import arrays, changes, sets
from rich.console import Console
from rich.table import Table

SOURCES = (cut, something_else, bombs, modes, turned, shapes, folders, arrays, cuts, hostile, changes, sets)


def cases() -> Iterator[Case]:
    """All of them."""
    for source in SOURCES:
        yield from source()


def totals(outcomes: list[Outcome]) -> Table:
    """How many of each group were read, refused, or failed."""
    table = Table("inputs", "tried", "read", "refused", "failed", box=None)
    groups = {outcome.case.group: Counter[str]() for outcome in outcomes}
    for outcome in outcomes:
        groups[outcome.case.group][outcome.how] += 1
    groups["all"] = sum(groups.values(), Counter())
    for group, count in groups.items():
        table.add_row(group, *map(str, (count.total(), count["decoded"], count["refused"], count["failed"])))
    return table


def main() -> int:
    """Try all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--all", action="store_true", help="print what is told of each")
    parser.add_argument("--only", default="", help="a part of the names of groups")
    asked, console = parser.parse_args(), Console(soft_wrap=True)
    outcomes = []
    for case in (case for case in cases() if asked.only in case.group):
        outcomes.append(judged(case))
        if asked.all or outcomes[-1].how == "failed":
            told = f"{outcomes[-1].how}: {case.group}: {case.name}: {outcomes[-1].told}"
            console.print(told.encode("ascii", "backslashreplace").decode(), markup=False, highlight=False)
    console.print(totals(outcomes))
    return int(any(outcome.how == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
