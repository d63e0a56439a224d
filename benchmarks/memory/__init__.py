"""The memory model against measured peaks, each with a backbone of random weights."""
