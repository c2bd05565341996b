"""Linear function approximation: features, Sarsa(λ) as a stream, statistics of samples, the policy they lead to."""
