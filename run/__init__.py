"""The record of one run: directory, request, prepared data, metrics, report. Imports no torch."""
