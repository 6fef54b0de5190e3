"""Reads what runs left (metrics, results, token reports) and writes pages; it knows no task."""
