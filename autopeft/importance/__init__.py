"""Importance: how much every weight, channel, block, head, site and layer matters for a study.

    settings    what is measured, on how many examples
    measuring   `measure`: a streaming pass over training examples, all scores at once
    taps        inputs and output gradients of the frozen linear maps
    sums        what is kept of them, site by site
    scores      from those sums to scores, and from scores of weights to scores of units
    head        the task head that the loss is taken through
    chance      the random control, a function of a seed
    identity    what makes two measurements the same
    stored      from a map to a record of the store, and back

Import from the modules: this package itself stays empty so that light ones load fast. The map
itself (`ImportanceMap`) is plain data and lives in `autopeft.backbone.importance`.
"""
