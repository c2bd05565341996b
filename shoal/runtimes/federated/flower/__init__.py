"""The deployment: parties on other machines, reached over Flower, which carries bytes and authenticates who sends them.

flwr is never imported here: its programs are started, and what they execute is the folder `app`. `carrier` is the
network of four verbs, `link` and `node` are the two sides' processes, `serving` and `partaking` the two sides' runs.
"""
