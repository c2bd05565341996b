"""One axis over seeds: several learners in one program or in lock-step."""
