"""Clips of video: their files, named sets, and the grid on which they are sampled."""
