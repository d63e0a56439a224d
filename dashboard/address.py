"""The page's address: which study and trial it names, `?study=demo&trial=17`.

The address is the one place where the choice is kept, so that a link shows what its sender saw.
The session remembers it, too, as the navigation bar's own links carry no parameters.
"""

from collections.abc import Sequence

import streamlit as st

_STUDY, _TRIAL = "study", "trial"


def study_in(names: Sequence[str]) -> str:
    """The study that the address names, else the one looked at last, else the first of `names`."""
    remembered = st.session_state.get(_STUDY)
    fallback = remembered if remembered in names else names[0]
    return st.query_params.get(_STUDY) or str(fallback)


def set_study(name: str) -> None:
    """Names the study in the address; another study's trial is dropped from it."""
    if st.session_state.get(_STUDY, name) != name and st.query_params.get(_STUDY) != name:
        st.query_params.pop(_TRIAL, None)
    if st.session_state.get(_STUDY) != name:
        st.session_state.pop(_TRIAL, None)
    st.session_state[_STUDY] = name
    if st.query_params.get(_STUDY) != name:
        st.query_params[_STUDY] = name


def trial() -> str | None:
    """The trial that the address names, as written there, else the one looked at last."""
    written = st.query_params.get(_TRIAL)
    if written is not None:
        st.session_state[_TRIAL] = written
        return written
    remembered = st.session_state.get(_TRIAL)
    if remembered is not None:
        st.query_params[_TRIAL] = str(remembered)
    return remembered


def set_trial(number: int) -> None:
    """Names the trial in the address."""
    st.query_params[_TRIAL] = st.session_state[_TRIAL] = str(number)


def parameters(study: str, number: int | None = None) -> dict[str, str]:
    """The parameters of a link to a study or a trial."""
    return {_STUDY: study} | ({} if number is None else {_TRIAL: str(number)})
