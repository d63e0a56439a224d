"""The top of every page about one study: which one, how far it is, how good it is."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from autopeft.study.records import StudyState
from dashboard import address, live, palette, words
from dashboard.queries import StudyView


def show_study_page(draw: Callable[[StudyView], None]) -> None:
    """A page about one study: lets the reader choose it, then draws it and keeps it fresh."""
    with live.reported():
        names = live.study_names()
        if not names:
            show_no_studies()
            return
        title, picker = st.columns([3, 1], vertical_alignment="bottom")
        name = _chosen(names, picker)
        with live.reported():
            view = live.study_view(name)
            with title:
                _title(view)
            live.show_live(view, draw)


def show_no_studies() -> None:
    """What to do about an empty database."""
    st.info("There is no study in this database yet.", icon=":material/inbox:")
    live.show_how_to_start()


def _chosen(names: list[str], picker: DeltaGenerator) -> str:
    """The study that the address names, unless the reader picks another."""
    wanted = address.study_in(names)
    if len(names) > 1 or wanted not in names:
        index = names.index(wanted) if wanted in names else None
        picked = picker.selectbox(
            "Study",
            names,
            index=index,
            placeholder="Choose a study",
            label_visibility="collapsed",
        )
        wanted = picked or wanted
    if wanted in names:
        address.set_study(wanted)
    return wanted


def show_state(place: Any, state: StudyState, *, lost: bool) -> None:
    """A study's state as a badge; one that was killed does not count as running."""
    if lost:
        place.badge("killed?", color=palette.LOST_BADGE, help=words.KILLED)
    else:
        place.badge(state.value, color=palette.badge(state))


def _title(view: StudyView) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.header(words.markdown(view.record.name), anchor=False, width="content")
        show_state(st, view.record.state, lost=view.lost)


def show_header(view: StudyView) -> None:
    """What is searched for, and the five numbers that matter."""
    st.caption(_about(view))
    _tiles(view)
    _news(view)


def _about(view: StudyView) -> str:
    definition = view.record.definition
    model = definition.get("model", {}).get("name_or_path", "")
    data = definition.get("data", {}).get("source", "")
    goals = ", ".join(
        f"{words.label(frame.name)} {'↑' if frame.goal == 'max' else '↓'}" for frame in view.frames
    )
    when = words.ago(view.record.updated_at, datetime.now(UTC))
    return words.markdown(f"{model} on {data} · {goals} · updated {when}")


def _tiles(view: StudyView) -> None:
    quality, best, progress = view.frames[0], view.best(), view.status
    total = f" / {view.total:,}" if view.total is not None else ""
    failed = sum(progress["failures"].values())
    value = best.objectives.get(quality.name) if best else None
    change = _against_baseline(view)
    columns = st.columns(5)
    columns[0].metric(
        "Trials ended",
        f"{view.done:,}{total}",
        f"{failed} failed" if failed else None,
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help="Baselines included.",
    )
    columns[1].metric(
        f"Best {words.markdown(words.label(quality.name))}",
        words.metric_value(quality.name, value),
        change or ("by a baseline" if best and best.baseline else None),
        delta_color="off" if not change else "normal" if quality.goal == "max" else "inverse",
        delta_arrow="auto" if change else "off",
        border=True,
        height="stretch",
        help="On the front: at the full budget and within the caps.",
    )
    columns[2].metric("Front", len(view.front), border=True, height="stretch")
    columns[3].metric(
        "Hypervolume",
        f"{progress['hypervolume']:.4f}",
        border=True,
        height="stretch",
        help="What the front dominates, against the study's reference point: from 0 to 1.",
    )
    columns[4].metric(*_clock(view), border=True, height="stretch")


def _against_baseline(view: StudyView) -> str | None:
    """How far the best trial is from the best baseline; None where it is a baseline itself."""
    name, best = view.frames[0].name, view.best()
    if best is None or best.baseline is not None or view.baseline is None:
        return None
    value, baseline = best.objectives.get(name), view.baseline.objectives.get(name)
    if value is None or baseline is None:
        return None
    return f"{value - baseline:+.4f} vs best baseline"


def _clock(view: StudyView) -> tuple[str, str]:
    if view.running:
        return "Time left, about", words.duration(view.status["eta_seconds"])
    return "Time spent", words.duration(view.record.spent.get("wall_seconds"))


def _news(view: StudyView) -> None:
    if view.running and view.record.stop_requested:
        st.info("The search was asked to stop.", icon=":material/stop_circle:")
    ended = view.record.facts.get("ended")
    if ended and ended["reason"] != "trials":
        text = words.markdown(ended["text"])
        st.info(text[0].upper() + text[1:], icon=":material/flag:")
    if why := view.record.facts.get("interrupted"):
        text = words.markdown(f"{why['reason']}; {why['hint']}")
        st.warning(f"Interrupted: {text}", icon=":material/pause_circle:")
    if view.lost:
        st.warning(words.KILLED, icon=":material/hourglass_disabled:")
    elif not view.trials:
        text = "No trial yet: the search is loading the backbone and the data, or has not begun."
        st.info(text, icon=":material/hourglass_empty:")
