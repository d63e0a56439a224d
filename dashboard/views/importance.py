"""How much every site matters for a study's data, and where a trial sits on it."""

import streamlit as st

from autopeft.api.place import storage_url
from autopeft.backbone.importance import ImportanceMap
from autopeft.importance.settings import MEASURED
from autopeft.study.records import asked_of
from dashboard import address, importance_charts, live, words
from dashboard.queries import StudyView
from dashboard.study_header import show_header, show_study_page

DEFAULT = "sensitivity"
NOBODY = "no trial"


def show(view: StudyView) -> None:
    """The page."""
    show_header(view)
    maps = live.importance_maps(view)
    if not maps:
        _how_to_measure(view)
        return
    found = _chosen_map(maps)
    controls, picture = st.columns([1, 3], gap="large")
    with controls:
        score = st.selectbox(
            "Score", MEASURED, MEASURED.index(DEFAULT), format_func=words.label, key="score"
        )
        measure = st.radio("Of a site, its", importance_charts.MEASURES, key="measure")
        number = _trial(view)
    placed = None if number is None else _placed(view, number)
    with picture:
        st.plotly_chart(
            importance_charts.importance_heatmap(found, score, measure=measure, placed=placed),
            key="importance-map",
            config={"displayModeBar": False},
        )
        if number is not None:
            _about_placement(view, number)
        st.markdown("**Layers**")
        st.plotly_chart(
            importance_charts.layer_bars(found, score),
            key="importance-layers",
            config={"displayModeBar": False},
        )
    st.caption(words.markdown(_about(found)))


def _how_to_measure(view: StudyView) -> None:
    st.info(
        "The importance of this study's sites has not been measured. A search measures it by "
        "itself where its space needs it; for any study, this does:",
        icon=":material/grid_on:",
    )
    st.code(f"autopeft importance STUDY.yaml{words.storage_flag(storage_url())}", language="bash")


def _chosen_map(maps: tuple[ImportanceMap, ...]) -> ImportanceMap:
    if len(maps) == 1:
        return maps[0]
    index = st.selectbox(
        "Measurement", range(len(maps)), format_func=lambda i: _about(maps[i]), key="measurement"
    )
    return maps[index]


def _about(found: ImportanceMap) -> str:
    facts = found.facts
    head = {"none": "its own head", "fitted": "a fitted head", "initial": "the initial head"}
    return (
        f"{found.examples} training examples in batches of {facts['batch_size']} through "
        f"{head[facts['head']]}, {float(facts['seconds']):.1f} s on {facts['device']}"
        f"{asked_of(facts)}"
    )


def _trial(view: StudyView) -> int | None:
    """The trial whose placement is laid over the map: the address's, else none."""
    if not view.trials:
        return None
    written = address.trial() or ""
    named = int(written) if written.isdecimal() and int(written) in view.trials else None
    numbers = {NOBODY: None} | {f"trial {number}": number for number in view.trials}
    labels = list(numbers)
    picked = st.selectbox(
        "Placement of", labels, list(numbers.values()).index(named), key="placement-of"
    )
    chosen = numbers[picked]
    if chosen is not None and chosen != named:
        address.set_trial(chosen)
    return chosen


def _placed(view: StudyView, number: int) -> dict[tuple[int, str], str]:
    return importance_charts.placed_at(view.trials[number].configuration)


def _about_placement(view: StudyView, number: int) -> None:
    configuration = view.trials[number].configuration
    rule = str(dict(configuration.sparsity).get("rule", "none"))
    text = f"Squares: trial {number}, {words.summary(configuration)}."
    if rule != "none":
        text += f" As proposed: its rule {rule} may leave less, or choose within."
    st.caption(words.markdown(text))


if __name__ == "__main__":
    show_study_page(show)
