"""One trial: what it is, how it learnt, why it was proposed, and how to take it along."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from autopeft.api.place import storage_url
from autopeft.searchers.explain import reasons
from autopeft.searchers.explain.predictions import predicted
from autopeft.study.layout import yaml_text
from autopeft.study.orphans import WHY
from autopeft.study.records import TrialRecord, TrialState
from dashboard import charts, live, palette, tables, words
from dashboard.confirmation_panel import show_trial_confirmation
from dashboard.queries import StudyView, TrialView


def show_trial(view: StudyView, number: int, *, why: str = "") -> None:
    """Everything about one trial.

    Args:
        view: Its study.
        number: Its number.
        why: Why it is shown, where the reader did not choose it.
    """
    shown = live.trial_view(view, number)
    _title(shown.record, on_front=any(number == member.number for member in view.front), why=why)
    _failure(shown.record)
    _values(view, shown.record)
    left, right = st.columns([1, 1], gap="large")
    with left:
        _pictures(view, shown)
    with right:
        _tabs(view, shown)


def _title(trial: TrialRecord, *, on_front: bool, why: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(f"Trial {trial.number}", anchor=False, width="content")
        st.badge(trial.state.value, color=palette.badge(trial.state))
        if on_front:
            st.badge("on the front", color="blue", icon=":material/star:")
        if trial.baseline is not None:
            st.badge(words.markdown(f"baseline {trial.baseline}"), color="orange")
    st.markdown(words.markdown(words.summary(trial.configuration)))
    if why:
        st.caption(words.markdown(why))


def _failure(trial: TrialRecord) -> None:
    if trial.state is TrialState.FAILED:
        text = f"{trial.cause or 'error'}: {trial.message or 'no message was recorded'}"
        st.error(words.markdown(text), icon=":material/error:")


def _values(view: StudyView, trial: TrialRecord) -> None:
    """The objectives, beside the best baseline's; then what is worth knowing of any trial."""
    names = [frame.name for frame in view.frames]
    tiles = [(name, *_against(view, trial, name)) for name in names]
    if "trainable_params" not in names:
        tiles.append(("trainable_params", words.number(trial.trainable_params), None))
    tiles.append(("head_params", words.number(trial.head_params), None))
    rate = dict(trial.configuration.training).get("learning_rate")
    tiles.append(("learning_rate", words.number(None if rate is None else float(rate)), None))
    rung = words.NOTHING if trial.rung is None else f"{trial.rung:.0%}"
    tiles.append(("budget reached", rung, f"{trial.optimizer_steps:,} steps"))
    for column, (name, value, note) in zip(st.columns(len(tiles)), tiles, strict=True):
        column.metric(
            words.markdown(words.label(name)),
            value,
            note,
            delta_color="off",
            delta_arrow="off",
        )


def _against(view: StudyView, trial: TrialRecord, name: str) -> tuple[str, str | None]:
    value = trial.objectives.get(name)
    if value is None and name == "trainable_params":
        value = trial.trainable_params
    text = words.metric_value(name, value)
    best = view.baseline
    theirs = best.objectives.get(name) if best else None
    if best is None or best.number == trial.number or value is None or theirs is None:
        return text, None
    if name == view.frames[0].name:
        return text, f"{value - theirs:+.4f} vs baseline"
    return text, f"{value / theirs:.2g}x baseline" if theirs else None


def _pictures(view: StudyView, shown: TrialView) -> None:
    trial = shown.record
    st.markdown("**Placement**")
    st.caption("Size of each method by layer.")
    if shown.placement.rows:
        st.plotly_chart(
            charts.placement_chart(shown.placement),
            key=f"placement-{trial.number}",
            config={"displayModeBar": False},
        )
    else:
        st.caption("No method is placed: only the head is trained.")
    st.markdown("**Learning curve**")
    if shown.curve:
        st.plotly_chart(
            charts.curve_chart(shown.curve, view.frames[0], shown.rung_steps),
            key=f"curve-{trial.number}",
            config={"displayModeBar": False},
        )
    else:
        st.caption("Nothing has been measured yet.")


def _tabs(view: StudyView, shown: TrialView) -> None:
    trial = shown.record
    take, configuration, reason, seeds, cost, attempts = st.tabs(
        ["Export and train", "Configuration", "Why proposed", "Seeds", "Cost", "Attempts"]
    )
    with take:
        _take(view, trial)
    with configuration:
        st.code(yaml_text(trial.configuration.to_dict()), language="yaml")
        for name, source in shown.sources.items():
            st.caption(words.markdown(f"{name}: {source}"))
        st.caption(f"hash {words.markdown(trial.hash)}")
    with reason:
        _reason(trial)
    with seeds:
        show_trial_confirmation(view, trial.number)
    with cost:
        _cost(trial.profile)
    with attempts:
        _attempts(shown)


def _take(view: StudyView, trial: TrialRecord) -> None:
    text, fault = live.exported(view, trial.number)
    if fault:
        st.warning(words.markdown(fault), icon=":material/block:")
        return
    name = view.record.name
    st.code(words.commands(name, trial.number, storage_url()), language="bash", wrap_lines=True)
    st.download_button(
        "Download the YAML",
        text,
        file_name=f"{words.file_stem(name)}-trial-{trial.number}.yaml",
        mime="application/yaml",
        icon=":material/download:",
        type="primary",
        on_click="ignore",
        key=f"download-{trial.number}",
    )
    st.code(text, language="yaml", height=420)


def _reason(trial: TrialRecord) -> None:
    """The sentences of `autopeft show`, what was predicted, and what has no sentence."""
    for sentence in reasons.sentences(trial, plus_minus="±"):
        st.markdown(words.markdown(words.sentence(sentence)))
    _prediction(trial)
    _pairs(reasons.unspoken(trial.details), "")


def _prediction(trial: TrialRecord) -> None:
    """What the searcher expected beside what came."""
    rows = [
        {
            "metric": words.label(name),
            "predicted": words.number(mean),
            "± sd": words.number(sd),
            "measured": words.number(trial.objectives.get(name)),
        }
        for name, (mean, sd) in predicted(trial).items()
    ]
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True)


def _pairs(values: Mapping[str, Any], nothing: str) -> None:
    rows = [
        {"": words.label(name), "value": _plain(name, value)} for name, value in values.items()
    ]
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True)
    elif nothing:
        st.caption(nothing)


def _plain(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, default=str)
    return words.metric_value(name, value)


def _cost(profile: Mapping[str, Any]) -> None:
    """Seconds of the trial beside those of its packs, then the counts."""
    seconds = [name for name in words.PROFILE_SECONDS if name in profile]
    if seconds:
        rows = [
            {
                "seconds": words.label(name),
                "this trial": words.metric_value(name, profile[name]),
                "its packs": words.metric_value(name, profile.get(f"pack_{name}")),
            }
            for name in seconds
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True)
        st.caption("A pack's seconds are shared out by the FLOPs of its trials.")
    if probe := profile.get("probe"):
        st.caption("By itself, measured before it was trained:")
        _pairs({name: probe[name] for name in words.MEASURED if name in probe}, "")
    shown = {"probe", "reached", *seconds, *(f"pack_{name}" for name in seconds)}
    rest = {name: value for name, value in profile.items() if name not in shown}
    _pairs(rest, "" if seconds else "Nothing has been recorded yet.")


def _attempts(shown: TrialView) -> None:
    if not shown.attempts:
        st.caption("It has not been started yet.")
        return
    _runs(shown.attempts)
    if shown.confirmation_attempts:
        st.caption("With other seeds:")
        _runs(shown.confirmation_attempts)
    if shown.orphans:
        st.caption(words.sentence(f"too late, {WHY}"))
        st.dataframe(tables.orphan_rows(shown.orphans), hide_index=True)


def _runs(attempts: Sequence[Mapping[str, Any]]) -> None:
    table = pd.DataFrame(attempts).drop(columns="log")
    table["runner"] = [words.runner(each["runner"]) for each in attempts]
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            name: st.column_config.DatetimeColumn(words.label(name), format="YYYY-MM-DD HH:mm:ss")
            for name in ("started_at", "finished_at")
        },
    )
    logs = [attempt["log"] for attempt in attempts if attempt["log"]]
    if logs:
        st.caption("The last lines that its runner wrote:")
        st.code(logs[-1], language=None)
