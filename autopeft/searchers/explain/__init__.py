"""Explanations of a search: which choices mattered, what was predicted, why a trial was proposed.

    choices      what configurations choose, as columns of numbers
    outcomes     what trials reached, stopped ones judged at the full budget
    importances  how much of quality and hypervolume each choice decides
    predictions  what the searcher expected beside what was measured
    reasons      why a trial was proposed, in sentences

None of this imports torch: reading commands and the dashboard use it. The importance of a choice
is about the trials of one study; a score of a backbone's sites is another thing.
"""
