"""The migrations: one file per schema revision, run by `storage.schema` without an ini file."""
