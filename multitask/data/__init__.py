"""Tables and tasks: what is read, checked, tokenised and cached."""
