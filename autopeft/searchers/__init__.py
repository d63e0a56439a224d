"""Searchers: what proposes configurations, and the front they are judged by."""
