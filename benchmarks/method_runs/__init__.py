"""What `benchmarks/methods.py` is made of.

`arms` says what is compared, read from `search_spaces/methods.yaml`; `recording` trains it in
packs, with what `benchmarks/importance_runs` has for that; `report` compares and `picture` draws;
`tiny` is a ground that takes seconds.
"""
