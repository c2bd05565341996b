"""Verbs of the command line that fill a file of their own; `shoal.command.cli` names them all."""
