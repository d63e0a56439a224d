"""One file per command; `autopeft.cli.main` puts them together."""
