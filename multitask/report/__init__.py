"""The report of a run or an ensemble: one self-contained HTML file, and its figures."""
