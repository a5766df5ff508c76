"""The page at `/`: what `status` says, for a browser. It shows counts, names and reasons; no entry, no secret.

`view` says in words how it is, `html` writes it. One document, with its style and its script inside and nothing from elsewhere;
without the script it is whole, too, and asks for itself again every ten seconds.
"""
