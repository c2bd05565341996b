"""The supervised workers that every runtime with processes uses."""
