"""Sequences with something to say of them: a class, the next token, a value; from files, or drawn."""
