"""A map in which every weight matters alike: what a study's faults are looked for with.

Layers, sites and methods of a space are checked before any weights are loaded, and so before
anything can be measured. What depends on the scores themselves (exact counts, caps) is left until
they are there.
"""

import numpy as np

from autopeft.backbone.anatomy import Anatomy, Site
from autopeft.backbone.importance import ImportanceMap, SiteScores
from autopeft.importance.settings import SCORES, ImportanceSettings


def even_map(anatomy: Anatomy) -> ImportanceMap:
    """The map of a backbone of which nothing is measured."""
    settings = ImportanceSettings()
    sites = [site for layer in anatomy.layers for site in layer.sites.values()]
    total = sum(site.in_features * site.out_features for site in sites)
    own = {
        (site.layer, site.role): _even(site, settings.block, _kept(site, settings, total))
        for site in sites
    }
    facts = {"note": "nothing is measured yet"}
    return ImportanceMap(dict.fromkeys(SCORES, own), settings.block, 0, "even", facts)


def _kept(site: Site, settings: ImportanceSettings, total: int) -> int:
    return settings.kept(site.in_features * site.out_features, total)


def _even(site: Site, block: int, keep: int) -> SiteScores:
    d_in, d_out = site.in_features, site.out_features
    rows, columns = -(-d_in // block), -(-d_out // block)
    heights = np.minimum(block, d_in - block * np.arange(rows))
    widths = np.minimum(block, d_out - block * np.arange(columns))
    return SiteScores(
        inputs=np.full(d_in, d_out, dtype=np.float32),
        outputs=np.full(d_out, d_in, dtype=np.float32),
        blocks=np.outer(heights, widths).astype(np.float32),
        weights=np.arange(keep, dtype=np.int64),
        values=np.ones(keep, dtype=np.float32),
    )
