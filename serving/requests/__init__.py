"""A request from prompt to last token, over as many ranks as it takes."""
