"""The tuner: the loop of a search, and what a coordinator does around it.

`loop` asks, has cohorts trained, and tells; `cohort` takes the trials of one ask through the
rungs, in packs that `packing` forms and `packs` shares out over the runners, once `probes` has
measured what the study asks of each by itself; `station` drives one runner, `failures` says what
is tried after what went wrong; `gains` tells when proposals promise too little; `ledger` is the
store under this coordinator's lease; `watch` knows the time and hears requests to stop; `reporter`
turns all of it into progress.
"""

from autopeft.tuner.loop import Tuner
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.watch import BUSY_S

__all__ = ["BUSY_S", "Tuner", "TunerSettings"]
