"""What happens after training: evaluate what was trained."""
