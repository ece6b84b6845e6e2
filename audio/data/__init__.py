"""Recordings and generated melodies, cut into clips."""
