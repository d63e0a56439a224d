"""Execution: where packs run. In this process now; the protocol is all that the tuner knows."""
