"""YAML search spaces that come with autopeft; this package holds data, no code."""
