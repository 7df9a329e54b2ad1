"""The assignment that is made out of this library: see docs/teaching.md."""
