"""Multivariate time series: their files, windows, and masks of what is observed."""
