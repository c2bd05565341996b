"""What every room may use: the vocabulary, errors, options, the names of choices, seeds, trees, programs."""
