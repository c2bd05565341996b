"""What is measured about learning together: who was how late, in which order gradients were applied."""
