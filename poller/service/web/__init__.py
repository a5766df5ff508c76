"""The page at `/`: the output of `status` for a browser. It shows counts, names and reasons, but no entry and no secret.

`view` makes the words, `html` the document. The document contains its style and its script, and loads nothing from elsewhere. It
is complete without the script, and then reloads itself every ten seconds.
"""
