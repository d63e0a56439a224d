"""The front of a study as an interactive plot, and the chosen trial beneath it."""

from typing import Any

import streamlit as st

from autopeft.study.orphans import WHY
from dashboard import address, charts, live, tables, words
from dashboard.confirmation_panel import show_confirmation
from dashboard.queries import StudyView
from dashboard.study_header import show_header, show_study_page
from dashboard.tables import Axis
from dashboard.trial_panel import show_trial

_PLOT = "front-plot"


def show(view: StudyView) -> None:
    """The page."""
    show_header(view)
    if not view.trials:
        return
    st.info(words.markdown(words.sentence(view.verdict)), icon=":material/balance:")
    number, why = _selected(view)
    left, right = st.columns([7, 3], gap="large")
    with left:
        _plot(view, number)
    with right:
        _choices(view)
        _hypervolume(view)
    _failures(view)
    _orphans(view)
    show_confirmation(view)
    if number is None:
        return
    st.divider()
    with live.reported():
        show_trial(view, number, why=why)


def _selected(view: StudyView) -> tuple[int | None, str]:
    """The trial that the address names, else the knee of the front, and why that is shown."""
    written = address.trial()
    if written is not None:
        if written.isdecimal():
            return int(written), ""
        st.warning(
            words.markdown(f"trial: got {written}; allowed: a number"),
            icon=":material/search_off:",
        )
    if view.choices:
        trial, why = view.choices["knee"]
        return trial.number, f"The knee of the front: {why}."
    return None, ""


def _plot(view: StudyView, number: int | None) -> None:
    x, y, x_log, y_log = _axes(view)
    shown = charts.placed(view.table, x, y, x_log=x_log, y_log=y_log)
    if shown.empty:
        st.info("No trial has a value on both axes yet.", icon=":material/scatter_plot:")
        return
    figure = charts.front_chart(
        view.table,
        x=x,
        y=y,
        objectives=view.frames,
        x_log=x_log,
        y_log=y_log,
        selected=number,
        confirmation=view.confirmation,
    )
    st.plotly_chart(
        figure,
        key=_PLOT,
        on_select=_clicked,
        selection_mode="points",
        config={"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
    )
    missing = len(view.table) - len(shown)
    hint = "Click a point to see the trial behind it."
    if missing:
        hint += f" {missing} of {len(view.table)} trials have no value on these axes."
    st.caption(hint)


def _axes(view: StudyView) -> tuple[Axis, Axis, bool, bool]:
    """The reader's choice of axes: by default the first cost across, quality up."""
    axes = tables.axes(view.table, view.frames)
    by_name = {axis.name: axis for axis in axes}
    cost = view.frames[1].name if len(view.frames) > 1 else "trainable_params"
    chosen = []
    columns = st.columns([3, 1.2, 3, 1.2], vertical_alignment="bottom")
    for place, title, default in ((0, "Across", cost), (2, "Up", view.frames[0].name)):
        names = list(by_name)
        name = columns[place].selectbox(
            title,
            names,
            index=names.index(default),
            format_func=lambda name: by_name[name].label,
            key=f"axis-{title}-{view.record.name}",
            persist_state="session",
        )
        axis = by_name[name or default]
        log = columns[place + 1].toggle(
            "log",
            value=axis.log,
            key=f"log-{title}-{axis.name}-{view.record.name}",
            persist_state="session",
        )
        chosen.append((axis, log))
    return chosen[0][0], chosen[1][0], chosen[0][1], chosen[1][1]


def _clicked() -> None:
    """Puts the clicked trial into the address; a click beside the points changes nothing."""
    event: Any = st.session_state[_PLOT]
    for point in event["selection"]["points"]:
        if "customdata" in point:
            address.set_trial(int(point["customdata"][0]))
            return


def _choices(view: StudyView) -> None:
    if not view.choices:
        st.caption(
            "No trial is on the front yet: none has ended the full budget, kept the caps and "
            "beaten the constant predictor."
        )
        return
    st.markdown("**Choose from the front**")
    with st.container(horizontal=True):
        for how, (trial, why) in view.choices.items():
            st.button(
                f"{how.capitalize()} · {trial.number}",
                help=words.markdown(words.sentence(why)),
                key=f"pick-{how}",
                on_click=address.set_trial,
                args=(trial.number,),
            )


def _hypervolume(view: StudyView) -> None:
    st.markdown("**Hypervolume over trials**")
    if not view.snapshots:
        st.caption("Nothing has been measured yet.")
        return
    st.plotly_chart(
        charts.hypervolume_chart(view.snapshots),
        key="hypervolume",
        config={"displayModeBar": False},
    )


def _failures(view: StudyView) -> None:
    """Failed trials have no place on the plot; they are named here."""
    failed = view.table[view.table["role"] == tables.FAILED]
    if failed.empty:
        return
    alone = len(failed) == len(view.table)
    with st.expander(f"{len(failed)} failed", icon=":material/error:", expanded=alone):
        st.dataframe(_failed_rows(view, list(failed["number"])), hide_index=True)


def _failed_rows(view: StudyView, numbers: list[int]) -> list[dict[str, Any]]:
    trials = [view.trials[number] for number in numbers]
    return [
        {
            "trial": trial.number,
            "cause": trial.cause or "error",
            "attempts": trial.attempts,
            "message": trial.message or "",
            "configuration": words.summary(trial.configuration),
        }
        for trial in trials
    ]


def _orphans(view: StudyView) -> None:
    """What came too late counts nowhere, but is not lost either."""
    if not view.orphans:
        return
    with st.expander(f"{len(view.orphans)} too late", icon=":material/hourglass_disabled:"):
        st.caption(words.sentence(f"results {WHY}"))
        st.dataframe(tables.orphan_rows(view.orphans), hide_index=True)


if __name__ == "__main__":
    show_study_page(show)
