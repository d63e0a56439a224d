"""Lanes: trials trained together on one frozen backbone, each equal to its solo run.

`pack` puts the pieces together; `gates` runs the trunk once and each lane from its own branch
point; `wiring` calls the operators at their sites, `ends` those between layers; `attention` gives
prefixes and aligners their place, and `slots` prompts; `heads` stacks the task heads; `optimizer`
is AdamW with one learning rate, clip and step count per lane; `seeds` makes every random number a
pure function of where it is used.
"""
