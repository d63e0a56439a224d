"""What `benchmarks/importance.py` is made of.

`arms` says what is compared, at which sizes; `grounds` on which data; `recording` trains it in
packs; `table` keeps what was measured; `report` compares.
"""
