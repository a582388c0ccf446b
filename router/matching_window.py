"""How well prefill and decode have matched of late, from the core's integrals since it began."""

from __future__ import annotations

from collections import deque

from router.core.matching import MatchReport

_WINDOW_S = 60.0
_LEAST_GAP_S = 1.0  # between two reports that are kept


class MatchingWindow:
    """Remembers reports of the last minute; whoever asks adds the one of the moment."""

    def __init__(self) -> None:
        self._reports: deque[MatchReport] = deque()

    def recent(self, report: MatchReport) -> MatchReport:
        """What happened in the last minute, or since the oldest report that there is."""
        reports = self._reports
        # The last one that is older than the window stays: the difference must cover the window.
        while len(reports) > 1 and report.seconds - reports[1].seconds >= _WINDOW_S:
            reports.popleft()
        since = report.since(reports[0]) if reports else report
        if not reports or report.seconds - reports[-1].seconds >= _LEAST_GAP_S:
            reports.append(report)
        return since
