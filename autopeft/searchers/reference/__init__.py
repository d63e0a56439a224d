"""The field's reference, AutoPEFT's search (Zhou et al., arXiv 2301.12132), repaired.

`searcher` proposes, `saas` and `nuts` are its surrogate and how that is drawn, `acquisition` and
`climbing` find what to train next; `numerics` keeps random states and threads apart.
"""
