"""Embedded sets, drawn from a seed: functions of continuous space or time, sampled at any resolution."""
