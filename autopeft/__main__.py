"""`python -m autopeft`: the same as `autopeft`, where no script was installed."""

from autopeft.cli.main import main

main()
