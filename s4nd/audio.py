"""The package `s4nd.audio` of a checkout, whose folder lies beside this one. A wheel holds that folder here."""

from s4nd._checkout import load

load()
