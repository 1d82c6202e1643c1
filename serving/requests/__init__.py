"""The life of a request from prompt to last token, on one or, after losses, several ranks."""
