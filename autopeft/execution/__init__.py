"""Execution: where packs run. In this process, in one per device, on the nodes of a Ray cluster.

The protocol in `base` is all that the tuner knows of them.
"""
