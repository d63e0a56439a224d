"""The list of studies: where each is, how good it is, and the way to its front."""

from datetime import UTC, datetime

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from autopeft.api.place import storage_url
from autopeft.study.records import StudyState
from dashboard import address, live, words
from dashboard.queries import StudyLine
from dashboard.study_header import show_no_studies, show_state

SHOWN = 50
FILTER_FROM = 8
_WIDTHS = [3.2, 1.3, 2.2, 1.5, 1, 1.4, 1.4]
_HEADS = ("Study", "State", "Trials", "Best quality", "Front", "Hypervolume", "Updated")


def show() -> None:
    """The page."""
    st.header("Studies", anchor=False)
    with live.reported():
        lines = live.study_lines()
        if not lines:
            show_no_studies()
            return
        running = [line for line in lines if line.state is StudyState.RUNNING]
        every = live.LOST_REFRESH_S if all(line.lost for line in running) else live.REFRESH_S
        st.fragment(_list, run_every=every if running else None)()


def _list() -> None:
    with live.reported():
        lines = live.study_lines()
        if len(lines) >= FILTER_FROM:
            wanted = st.text_input("Filter", placeholder="part of a name", width=320).lower()
            lines = [line for line in lines if wanted in line.name.lower()]
        for column, head in zip(st.columns(_WIDTHS), _HEADS, strict=True):
            column.caption(head)
        for line in lines[:SHOWN]:
            _study(line)
        if len(lines) > SHOWN:
            st.caption(f"{len(lines) - SHOWN} more, changed longer ago: use the filter.")


def _study(line: StudyLine) -> None:
    with st.container(border=True):
        name, state, trials, best, front, volume, updated = st.columns(
            _WIDTHS, vertical_alignment="center"
        )
        name.page_link(
            "views/front.py",
            label=f"**{words.markdown(line.name)}**",
            icon=":material/scatter_plot:",
            query_params=address.parameters(line.name),
        )
        name.caption(words.markdown(f"{line.model} on {line.data}"))
        show_state(state, line.state, lost=line.lost)
        _progress(trials, line)
        best.markdown(f"**{words.metric_value(line.metric, line.best)}**")
        best.caption(words.markdown(words.label(line.metric)))
        front.markdown(str(line.front_size))
        volume.markdown(f"{line.hypervolume:.4f}")
        updated.caption(words.ago(line.updated_at, datetime.now(UTC)))


def _progress(place: DeltaGenerator, line: StudyLine) -> None:
    failed = f" · {line.failed} failed" if line.failed else ""
    if line.total:
        share = min(1.0, line.done / line.total)
        place.progress(share, text=f"{line.done} / {line.total}{failed}")
    else:
        place.markdown(f"{line.done}{failed}")


if __name__ == "__main__":
    show()
    st.caption(words.markdown(words.place(storage_url())))
