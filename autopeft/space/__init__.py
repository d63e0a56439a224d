"""Search spaces: YAML <-> `Space`, its points, and their encoding to the unit cube.

    library     `load_space`, `list_spaces`: from a name, a file or an inline block
    parser      the YAML block -> `Space`, all faults at once
    space       `Space` (any backbone), `BoundSpace` (one backbone), `Point`
    document    strict YAML 1.2 reading, for every file that autopeft reads
    quantities  numbers, bytes and durations as people write them
    schema      what methods and backbones tell a space about themselves

Import from the modules: this package itself stays empty so that light ones load fast.
"""
