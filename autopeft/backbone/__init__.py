"""The backbone: loading a frozen model, and its anatomy."""
