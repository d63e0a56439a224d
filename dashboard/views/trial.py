"""One trial of a study, by number."""

import streamlit as st

from dashboard import address, live, words
from dashboard.queries import StudyView
from dashboard.study_header import show_study_page
from dashboard.trial_panel import show_trial


def show(view: StudyView) -> None:
    """The page."""
    name, numbers = view.record.name, list(view.trials)
    st.page_link(
        "views/front.py",
        label=f"Front of {words.markdown(name)}",
        icon=":material/arrow_back:",
        query_params=address.parameters(name),
    )
    if not numbers:
        st.info("The study has no trial yet.", icon=":material/hourglass_empty:")
        return
    number = _number(view, numbers)
    if number is None:
        return
    with live.reported():
        show_trial(view, number)


def _number(view: StudyView, numbers: list[int]) -> int | None:
    """The trial that the address names, else the front's knee, else the first."""
    default = view.choices["knee"][0].number if view.choices else numbers[0]
    written = address.trial() or str(default)
    if not written.isdecimal() or int(written) not in view.trials:
        st.warning(
            words.markdown(f"trial: got {written}; allowed: {numbers[0]} to {numbers[-1]}"),
            icon=":material/search_off:",
        )
        written = ""
    here = int(written) if written else default
    chosen = st.number_input("Trial", numbers[0], numbers[-1], here, width=160)
    if chosen != here:
        address.set_trial(chosen)
        return chosen
    return here if written else None


if __name__ == "__main__":
    show_study_page(show)
