"""What `benchmarks/search_quality.py` is made of.

`tasks` says what is trained, `recording` trains it with the project's own engine, `tables` reads
and writes what was recorded.
"""
