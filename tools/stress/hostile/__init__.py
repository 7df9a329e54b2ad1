"""The cases of attack.py, a module for each of its groups, and the box in which each case is carried out."""
