"""One run, or several, in its folder: training, resuming, evaluating, comparing, replaying."""
