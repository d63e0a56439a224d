"""Data, metrics, lanes and packs, and the loop that trains them."""
