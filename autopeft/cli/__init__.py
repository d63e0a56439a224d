"""The command line: one file per command in `commands/`, all over `autopeft.api`."""
