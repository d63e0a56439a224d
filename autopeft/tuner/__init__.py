"""The tuner: the loop of a search, and what a coordinator does around it.

`loop` asks, has cohorts trained, and tells; `cohort` takes the trials of one ask through the
rungs, in packs that `packing` forms and `packs` trains, once `probes` has measured what the study
asks of each by itself; `gains` tells when proposals promise too little; `ledger` is the store
under this coordinator's lease; `watch` knows the time and hears requests to stop; `reporter` turns
all of it into progress.
"""

from autopeft.tuner.loop import Tuner
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.watch import LEASE_S

__all__ = ["LEASE_S", "Tuner", "TunerSettings"]
