"""How the search goes: quality and hypervolume over trials, what was spent, every trial."""

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import address, charts, tables, words
from dashboard.queries import StudyView
from dashboard.study_header import show_header, show_study_page

_PLOT = "quality-plot"
_TABLE = "trial-table"
_FIRST = ("number", "on_front", "state", "origin", "baseline")
_LAST = ("trainable_params", "head_params", "learning_rate", "rung", "attempts", "summary")


def show(view: StudyView) -> None:
    """The page."""
    show_header(view)
    if not view.trials:
        return
    left, right = st.columns([7, 3], gap="large")
    with left:
        st.markdown(
            f"**{words.markdown(words.label(view.frames[0].name).capitalize())} by trial**"
        )
        st.plotly_chart(
            charts.quality_chart(view.table, view.frames[0]),
            key=_PLOT,
            config={"displayModeBar": False},
        )
    with right:
        st.markdown("**Hypervolume over trials**")
        if view.snapshots:
            st.plotly_chart(
                charts.hypervolume_chart(view.snapshots),
                key="hypervolume",
                config={"displayModeBar": False},
            )
        else:
            st.caption("Nothing has been measured yet.")
        _spent(view)
    st.markdown("**All trials**")
    st.caption("Select a row to open the trial.")
    _table(view)


def _spent(view: StudyView) -> None:
    spent, status = view.status["spent"], view.status
    retried = {} if status["attempts"] == status["failures"] else status["attempts"]
    rows = [
        ("time", words.duration(spent["wall_seconds"])),
        ("of which training", words.duration(spent["train_seconds"])),
        ("of which proposing", words.duration(spent["suggest_seconds"])),
        *((f"failed: {cause}", str(count)) for cause, count in status["failures"].items()),
        *((f"attempts: {cause}", str(count)) for cause, count in retried.items()),
        *([("came too late", str(len(view.orphans)))] if view.orphans else []),
    ]
    st.dataframe(pd.DataFrame(rows, columns=["spent", "value"]), hide_index=True)


def _table(view: StudyView) -> None:
    objectives = [frame.name for frame in view.frames]
    columns = list(dict.fromkeys([*_FIRST, *objectives, *_LAST]))
    shown = view.table[columns].iloc[::-1]
    event: Any = st.dataframe(
        shown,
        key=_TABLE,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        column_config=_column_config(columns),
        height=420 if len(shown) > 11 else "auto",
    )
    rows = event["selection"]["rows"]
    if rows:
        number = int(shown["number"].iloc[rows[0]])
        st.switch_page("views/trial.py", query_params=address.parameters(view.record.name, number))


def _column_config(columns: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "number": st.column_config.NumberColumn("trial", width="small", pinned=True),
        "on_front": st.column_config.CheckboxColumn("front", width="small"),
        "rung": st.column_config.NumberColumn("budget", format="percent"),
        "attempts": st.column_config.NumberColumn("attempts", width="small"),
        "baseline": st.column_config.TextColumn("baseline", width="medium"),
        "summary": st.column_config.TextColumn("configuration", width="large"),
        "learning_rate": st.column_config.NumberColumn("learning rate", format="%.2e"),
    }
    for name in columns:
        if name not in config and name not in _FIRST:
            axis = tables.Axis.of(name)
            format_ = "localized" if axis.log else "%.4f"
            config[name] = st.column_config.NumberColumn(axis.label, format=format_)
    return config


if __name__ == "__main__":
    show_study_page(show)
