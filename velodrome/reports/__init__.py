"""Rows -> table, chart, one HTML file. Reads records and nothing else; imports no torch."""
