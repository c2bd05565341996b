"""Carries bytes between a federation's server and its parties; all else happens behind their two sockets."""
