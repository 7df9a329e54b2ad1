"""What an assignment is checked with: `tools/course.py make` copies it beside the code to fill in."""
