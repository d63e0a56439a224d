"""Text with labels or answers, from wherever it lies to token ids: what a study trains on.

    text         `load_text_data` reads, checks and splits
    tokenising   `load_task_data` tokenises on top of it; only `load_test` opens the test split
    examples     what comes out
    guess        tells what a data set's columns seem to be

Import from the modules: this package itself stays empty so that light ones load fast.
"""
