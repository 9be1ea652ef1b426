"""`python -m latentsb`."""

from latentsb.cli import main

main()
