"""What `benchmarks/packing.py` is made of.

    shapes      backbones: a folder's, or a named shape with random weights
    rows        training and validation data: csv files, or tokens of stated lengths
    trials      the configurations: quick draws, random mixes, single LoRA trials
    nearest     each configuration's nearest HF `peft` configuration
    reference   one trial with HF `Trainer` and `peft`
    lanes       packs with autopeft, whole or with one factor taken away
    bench       a model with its data: makes the arms of a scenario
    measuring   runs what has not been measured yet, interleaved, and records it
    lines       from measurements to ratios, verdicts and the table
    roofline    achieved and possible FLOP/s
    encoders    the scenarios on encoders
    decoders    the scenario on a decoder
    profiling   where our steps lose time
    command     the command line

Nothing but torch, transformers, peft, numpy and safetensors (and what they require) is needed.
"""
