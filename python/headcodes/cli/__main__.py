"""`python -m headcodes.cli`."""

from headcodes.cli import main

main()
