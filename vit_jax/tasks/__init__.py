"""What a batch is asked for: loss, metrics and scores."""
