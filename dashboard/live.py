"""What a page needs to stay fresh: cached reads, the refresh, and errors as friendly messages.

A study is read anew only when its `updated_at` has moved, or its search has come or gone, so that
a refresh of an unchanged study costs a few rows however many trials it has. What is cached is
shared between viewers and unchanging; `cache_resource` hands it out without a copy.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import streamlit as st

from autopeft.api.place import storage_url
from autopeft.api.study import Study
from autopeft.backbone.importance import ImportanceMap
from autopeft.errors import AutopeftError, NotFoundError, StorageError, StorageVersionError
from autopeft.searchers.explain.importances import Importances
from dashboard import queries, words
from dashboard.queries import StudyLine, StudyView, TrialView

REFRESH_S = 3.0
LOST_REFRESH_S = 30.0
"""A killed search may go on at any time; until then nothing moves."""
TRIALS_PER_REFRESH_S = 500
"""A large study is read less often, so that looking at a search does not slow it down."""


def study_names() -> list[str]:
    """The names of all studies, the one that changed last first; at most a refresh old."""
    return _study_names(storage_url())


@st.cache_data(ttl=REFRESH_S, max_entries=8, show_spinner=False)
def _study_names(url: str) -> list[str]:
    return queries.study_names(url)


def study_lines() -> list[StudyLine]:
    """All studies, the one that changed last first; at most a refresh old."""
    return _study_lines(storage_url())


@st.cache_data(ttl=REFRESH_S, max_entries=8, show_spinner=False)
def _study_lines(url: str) -> list[StudyLine]:
    return queries.study_lines(url)


def study_view(name: str) -> StudyView:
    """The study as it is now."""
    url = storage_url()
    with queries.opened(url, name) as study:
        return _study_view(study, url, name, study.record.updated_at, queries.held(study))


@st.cache_resource(max_entries=8, show_spinner="Reading the study …")
def _study_view(_study: Study, url: str, name: str, updated_at: datetime, held: bool) -> StudyView:
    return queries.read_study(_study)


def trial_view(view: StudyView, number: int) -> TrialView:
    """One trial as it was when `view` was made, or later."""
    name, url = view.record.name, storage_url()
    return _trial_view(url, name, number, view.record.updated_at)


@st.cache_resource(max_entries=64, show_spinner=False)
def _trial_view(url: str, name: str, number: int, updated_at: datetime) -> TrialView:
    with queries.opened(url, name) as study:
        return queries.read_trial(study, number)


def importances(view: StudyView) -> Mapping[str, Importances]:
    """What mattered, by target; while the study runs, worked out anew for every tenth more trials.

    Shows that it is at work, where it is called: it takes a second or more.
    """
    step = max(1, view.done // 10) if view.running else 1
    record = view.record
    return _importances(storage_url(), record.name, record.created_at, view.done // step * step)


@st.cache_resource(max_entries=8, show_spinner="Working out what mattered …")
def _importances(
    url: str, name: str, created_at: datetime, done: int
) -> Mapping[str, Importances]:
    with queries.opened(url, name) as study:
        return queries.read_importances(study)


def importance_maps(view: StudyView) -> tuple[ImportanceMap, ...]:
    """The maps of the study's backbone and data; they may be measured at any time."""
    return _importance_maps(storage_url(), view.record.name)


@st.cache_resource(ttl=LOST_REFRESH_S, max_entries=8, show_spinner="Reading the maps …")
def _importance_maps(url: str, name: str) -> tuple[ImportanceMap, ...]:
    with queries.opened(url, name) as study:
        return queries.read_importance_maps(study)


def exported(view: StudyView, number: int) -> tuple[str, str]:
    """The YAML that trains a trial elsewhere, or "" and why there is none."""
    return _exported(storage_url(), view.record.name, number, view.record.updated_at)


@st.cache_data(max_entries=64, show_spinner=False)
def _exported(url: str, name: str, number: int, updated_at: datetime) -> tuple[str, str]:
    with queries.opened(url, name) as study:
        return queries.exported(study, number)


def show_live(view: StudyView, draw: Callable[[StudyView], None]) -> None:
    """Draws a study's page, again and again while the study runs.

    Only what `draw` draws is refreshed; choices made in widgets stay.
    """
    name = view.record.name

    @st.fragment(run_every=refresh_s(view))
    def refreshed() -> None:
        with reported():
            now = study_view(name)
            if (now.record.state, now.lost) != (view.record.state, view.lost):
                st.rerun()  # the whole page: its title changes, refreshing begins or ends
            draw(now)

    refreshed()


def refresh_s(view: StudyView) -> float | None:
    """How often a study's page is drawn anew; None where nothing more is to come."""
    if view.running:
        return max(REFRESH_S, len(view.trials) / TRIALS_PER_REFRESH_S)
    return LOST_REFRESH_S if view.lost else None


@contextmanager
def reported() -> Iterator[None]:
    """Shows an error of autopeft in place of what could not be drawn."""
    try:
        yield
    except NotFoundError as error:
        st.warning(words.markdown(str(error)), icon=":material/search_off:")
    except StorageVersionError as error:
        st.error(words.markdown(str(error)), icon=":material/database:")
    except StorageError as error:
        st.warning(words.markdown(str(error)), icon=":material/database:")
        show_how_to_start()
    except AutopeftError as error:
        st.error(words.markdown(str(error)), icon=":material/error:")


def show_how_to_start() -> None:
    """The commands that make something to look at."""
    storage = words.storage_flag(storage_url())
    st.markdown("Start a search (without a file, the embedded demo); this page then shows it:")
    st.code(f"autopeft search{storage}\nautopeft search STUDY.yaml{storage}", language="bash")
    st.markdown("Or look into another database:")
    st.code("autopeft dashboard --storage sqlite:///PATH/TO/autopeft.db", language="bash")
