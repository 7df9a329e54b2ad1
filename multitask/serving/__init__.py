"""A trained model over HTTP: the app, its page, and how requests share batches."""
