"""What other seeds than the search's say, and whether the test split is still locked."""

from typing import Any

import pandas as pd
import streamlit as st

from autopeft.searchers import confirmed
from autopeft.study.confirmation import Confirmed, Seen
from dashboard import words
from dashboard.queries import StudyView

SPLITS = ("validation", "test")


def show_confirmation(view: StudyView) -> None:
    """The table of all confirmed trials, and what a reader should know of it."""
    found = view.confirmation
    st.markdown("**Confirmed with other seeds**")
    if not found.trials:
        st.caption(
            "No trial yet: every value here is of one seed, which also chose the front. "
            f"`autopeft confirm {words.markdown(view.record.name)}` trains some again with five."
        )
        show_test_split(view)
        return
    for split in SPLITS:
        rows = [
            _row(view, each, own)
            for each in found.trials.values()
            if (own := getattr(each, split)) is not None
        ]
        if rows:
            st.caption(f"{words.label(found.frame.name).capitalize()} on {split}")
            st.dataframe(pd.DataFrame(rows), hide_index=True)
    show_test_split(view)
    with st.expander("How to read this"):
        for note in confirmed.notes(found):
            st.markdown(f"- {words.markdown(note)}")


def show_test_split(view: StudyView) -> None:
    """Whether it is locked; else who opened it, when and for which trials."""
    test = view.status["test"]
    if test["state"] == "none":
        st.caption("The study names no test split.")
        return
    if not test["openings"]:
        st.caption(":material/lock: The test split is locked.")
        return
    for each in test["openings"]:
        named = ", ".join(str(number) for number in each["trials"])
        text = (
            f"opened{' again' if each['again'] else ''} {each['at'][:16].replace('T', ' ')} UTC "
            f"by {each['by']} for trials {named}"
        )
        st.caption(f":material/lock_open: The test split was {words.markdown(text)}.")


def show_trial_confirmation(view: StudyView, number: int) -> None:
    """One trial's values by seed, and its difference from the best baseline."""
    own = view.confirmation.trials.get(number)
    if own is None:
        st.caption("It was not trained with other seeds.")
        return
    for split in SPLITS:
        seen: Seen | None = getattr(own, split)
        if seen is None:
            continue
        st.markdown(f"**{split.capitalize()}**: {words.markdown(seen.over.shown())}")
        if seen.difference is not None:
            over, mark = seen.difference.over, seen.difference.mark.value
            text = f"{over.shown(signed=True)} from the best baseline: {mark}"
            st.markdown(words.markdown(text))
        pairs = sorted(seen.by_seed.items())
        rows = [{"seed": seed, "value": f"{value:.4f}"} for seed, value in pairs]
        st.dataframe(pd.DataFrame(rows), hide_index=True)
    for seed, why in sorted(own.missing.items()):
        st.caption(words.markdown(f"seed {seed}: {why}"))


def _row(view: StudyView, each: Confirmed, seen: Seen) -> dict[str, Any]:
    trial, over = view.trials[each.trial], seen.over
    row: dict[str, Any] = {
        "trial": f"{each.trial}{'' if trial.baseline is None else f' ({trial.baseline})'}",
        "trainable parameters": words.number(trial.trainable_params),
        "seed 0": words.number(trial.objectives.get(view.frames[0].name)),
        "mean (95 % interval)": over.shown(),
        "sd": words.NOTHING if over.sd is None else f"{over.sd:.4f}",
        "seeds": over.n,
        "difference (95 % interval)": words.NOTHING,
        "vs baseline": "(the baseline)" if each.reference else words.NOTHING,
    }
    if seen.difference is not None:
        row["difference (95 % interval)"] = seen.difference.over.shown(signed=True)
        row["vs baseline"] = seen.difference.mark.value
    return row
